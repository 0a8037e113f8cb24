// SPDX-License-Identifier: Apache-2.0
#include "model/roles.h"

namespace thermoe {
namespace {

using Config = ModelConfig;
using Weights = ModelWeights;

bool Always(const Config&) { return true; }
bool WithBias(const Config& c) { return c.attention.qkv_bias; }
bool WithQkNorm(const Config& c) { return c.attention.qk_norm != QkNorm::kNone; }
bool WithShared(const Config& c) { return c.shared_width > 0; }

int64_t QueryWidth(const Config& c) { return int64_t{c.heads} * c.head_dim; }
int64_t KeyWidth(const Config& c) { return int64_t{c.kv_heads} * c.head_dim; }
MatrixShape VocabByHidden(const Config& c) { return {c.vocab, c.hidden}; }
MatrixShape HiddenVector(const Config& c) { return {1, c.hidden}; }
MatrixShape QueryByHidden(const Config& c) { return {QueryWidth(c), c.hidden}; }
MatrixShape KeyByHidden(const Config& c) { return {KeyWidth(c), c.hidden}; }
MatrixShape QueryVector(const Config& c) { return {1, QueryWidth(c)}; }
MatrixShape KeyVector(const Config& c) { return {1, KeyWidth(c)}; }
MatrixShape QueryGain(const Config& c) {
  return {1, c.attention.qk_norm == QkNorm::kPerHead ? c.head_dim : QueryWidth(c)};
}
MatrixShape KeyGain(const Config& c) { return {1, c.attention.qk_norm == QkNorm::kPerHead ? c.head_dim : KeyWidth(c)}; }
MatrixShape HiddenByQuery(const Config& c) { return {c.hidden, QueryWidth(c)}; }
MatrixShape ExpertsByHidden(const Config& c) { return {c.experts, c.hidden}; }
MatrixShape WidthByHidden(const Config& c) { return {c.expert_width, c.hidden}; }
MatrixShape HiddenByWidth(const Config& c) { return {c.hidden, c.expert_width}; }
MatrixShape SharedByHidden(const Config& c) { return {c.shared_width, c.hidden}; }
MatrixShape HiddenByShared(const Config& c) { return {c.hidden, c.shared_width}; }

// Grows as experts are found, so that a config with absurd numbers allocates nothing.
FfnWeights& Expert(Weights& w, int32_t layer, int32_t expert) {
  auto& experts = w.layers[static_cast<size_t>(layer)].experts;
  if (experts.size() <= static_cast<size_t>(expert)) experts.resize(static_cast<size_t>(expert) + 1);
  return experts[static_cast<size_t>(expert)];
}
LayerWeights& Layer(Weights& w, int32_t layer) { return w.layers[static_cast<size_t>(layer)]; }

template <WeightMatrix LayerWeights::*member>
WeightMatrix* LayerMatrix(Weights& w, int32_t layer, int32_t) {
  return &(Layer(w, layer).*member);
}
template <std::vector<float> LayerWeights::*member>
std::vector<float>* LayerVector(Weights& w, int32_t layer) {
  return &(Layer(w, layer).*member);
}
template <WeightMatrix FfnWeights::*member>
WeightMatrix* ExpertMatrix(Weights& w, int32_t layer, int32_t expert) {
  return &(Expert(w, layer, expert).*member);
}
template <WeightMatrix FfnWeights::*member>
WeightMatrix* SharedMatrix(Weights& w, int32_t layer, int32_t) {
  return &(Layer(w, layer).shared.*member);
}

using L = LayerWeights;
using F = FfnWeights;
constexpr RoleSpec kRoles[] = {
    {Role::kEmbedding, Scope::kModel, Always, VocabByHidden, [](Weights& w, int32_t, int32_t) { return &w.embedding; },
     nullptr},
    {Role::kOutputNorm, Scope::kModel, Always, HiddenVector, nullptr,
     [](Weights& w, int32_t) { return &w.output_norm; }},
    {Role::kOutput, Scope::kModel, [](const Config& c) { return !c.tied_embeddings; }, VocabByHidden,
     [](Weights& w, int32_t, int32_t) { return &w.output; }, nullptr},
    {Role::kAttentionNorm, Scope::kLayer, Always, HiddenVector, nullptr, LayerVector<&L::attention_norm>},
    {Role::kQ, Scope::kLayer, Always, QueryByHidden, LayerMatrix<&L::q>, nullptr},
    {Role::kK, Scope::kLayer, Always, KeyByHidden, LayerMatrix<&L::k>, nullptr},
    {Role::kV, Scope::kLayer, Always, KeyByHidden, LayerMatrix<&L::v>, nullptr},
    {Role::kQBias, Scope::kLayer, WithBias, QueryVector, nullptr, LayerVector<&L::q_bias>},
    {Role::kKBias, Scope::kLayer, WithBias, KeyVector, nullptr, LayerVector<&L::k_bias>},
    {Role::kVBias, Scope::kLayer, WithBias, KeyVector, nullptr, LayerVector<&L::v_bias>},
    {Role::kQNorm, Scope::kLayer, WithQkNorm, QueryGain, nullptr, LayerVector<&L::q_norm>},
    {Role::kKNorm, Scope::kLayer, WithQkNorm, KeyGain, nullptr, LayerVector<&L::k_norm>},
    {Role::kO, Scope::kLayer, Always, HiddenByQuery, LayerMatrix<&L::o>, nullptr},
    {Role::kExpertNorm, Scope::kLayer, Always, HiddenVector, nullptr, LayerVector<&L::expert_norm>},
    {Role::kGate, Scope::kLayer, Always, ExpertsByHidden, LayerMatrix<&L::gate>, nullptr},
    {Role::kExpertGate, Scope::kExpert, Always, WidthByHidden, ExpertMatrix<&F::gate>, nullptr},
    {Role::kExpertUp, Scope::kExpert, Always, WidthByHidden, ExpertMatrix<&F::up>, nullptr},
    {Role::kExpertDown, Scope::kExpert, Always, HiddenByWidth, ExpertMatrix<&F::down>, nullptr},
    {Role::kSharedGateProjection, Scope::kLayer, WithShared, SharedByHidden, SharedMatrix<&F::gate>, nullptr},
    {Role::kSharedUp, Scope::kLayer, WithShared, SharedByHidden, SharedMatrix<&F::up>, nullptr},
    {Role::kSharedDown, Scope::kLayer, WithShared, HiddenByShared, SharedMatrix<&F::down>, nullptr},
    {Role::kSharedGate, Scope::kLayer, [](const Config& c) { return c.shared_gate; }, HiddenVector,
     LayerMatrix<&L::shared_gate>, nullptr},
};

}  // namespace

std::span<const RoleSpec> RoleTable() { return kRoles; }

}  // namespace thermoe
