// SPDX-License-Identifier: Apache-2.0
// A device waits for the host between two steps: until the tokens of one have come there and the next is launched. A step that depends on nothing but
// these tokens, which the device has, is begun before they come. A request that ends with the step before, by a token that nobody could foresee, leaves
// its row to nobody; requests that come meanwhile wait for the step after.
#include <utility>

#include "engine/engine_impl.h"

namespace thermoe {

// Whether the step after `step`, which has been begun, has the same rows, one token on, and all that the engine decides of it is known.
bool EngineImpl::MayBeginAhead(const StepContext& step) const {
  if (!options_.overlap_steps || !ops_->overlaps_steps() || supervisor_->controller() != nullptr || supervisor_->info().simulated) return false;
  const size_t rows = batch_.rows.size();
  if (rows == 0 || rows > kernels::kMostAhead || step.inside.count != rows || !step.inside.draws || running_.size() != rows) return false;
  if (batch_aware_ || (steering_ != nullptr && steering_->sample_gate_rows > 0)) return false;
  for (size_t row = 0; row < rows; ++row) {
    const ActiveRequest* active = running_[row].get();
    if (active != row_owner_[row] || batch_.rows[row].kind != kernels::RowKind::kDecode || active->session->ttt != nullptr) return false;
    // A penalty would look at the token that is not known.
    if (active->request.keep_logits == KeepLogits::kAll || (active->request.forced.empty() && active->request.sampling.repetition_penalty != 1)) return false;
    const bool ends = active->result.generated.size() + 1 >= active->target() || active->session->tokens.size() + 1 > static_cast<size_t>(context_);
    if (ends) return false;
  }
  return true;
}

void EngineImpl::BeginAhead() {
  ahead_.batch.rows.clear(), ahead_.row_owner.clear(), ahead_.parts.clear();
  for (const auto& active : running_) {
    Session* session = active->session;
    const int32_t position = session->kv.length + 1;  // behind this step's
    if (!cache_->Reserve(&session->kv, position + 1).ok()) return;  // the step itself will say so
    const size_t generated = active->result.generated.size();
    const TokenId token = active->request.forced.empty() ? kernels::kLargestBefore : active->request.forced[generated];
    ahead_.batch.rows.push_back({token, &session->kv, position, kernels::RowKind::kDecode, true, nullptr, -1,
                                 AskedOf(*active, static_cast<size_t>(position))});
    ahead_.row_owner.push_back(active.get());
    StepPart part;
    part.account = active->account;
    part.rows = part.logit_rows = 1;
    part.first_position = position;
    ahead_.parts.push_back(part);
  }
  StartRecord(record_.step + 1, &ahead_.record);
  StepContext step = ContextOf(ahead_.batch, ahead_.record);
  beginning_ahead_ = true;
  BeginForward(step, true);
  beginning_ahead_ = false;
  ahead_.inside = step.inside;
  ahead_.begun = true;
}

void EngineImpl::TakeAhead() {
  std::swap(batch_, ahead_.batch), std::swap(row_owner_, ahead_.row_owner), std::swap(record_, ahead_.record);
  parts_.clear();
  for (size_t row = 0; row < row_owner_.size(); ++row) {
    if (row_owner_[row] != nullptr) parts_.push_back(ahead_.parts[row]);
  }
  ahead_.begun = false;
}

void EngineImpl::LeaveAhead(const ActiveRequest* active) {
  if (!ahead_.begun) return;
  bool wanted = false;
  for (ActiveRequest*& owner : ahead_.row_owner) {
    if (owner == active) owner = nullptr;
    wanted = wanted || owner != nullptr;
  }
  if (!wanted) DropAhead();
}

}  // namespace thermoe
