// SPDX-License-Identifier: Apache-2.0
// thermoe inspect: what a model file holds and what a decode step would read of it.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "command.h"
#include "engine/model_impl.h"
#include "flags.h"
#include "help.h"
#include "json_out.h"
#include "model_options.h"
#include "output.h"
#include "table.h"
#include "terminal.h"

namespace thermoe {
namespace {

constexpr int kBatches[] = {1, 8, 32, 128};

const HelpPage kPage = {
    "thermoe inspect [MODEL] [--tensors] [--experts native|nested] [--json]",
    "Prints architecture, sizes, tensors, tokenizer and chat template of a model, the bytes of one expert, and for "
    "decode steps of 1, 8, 32 and 128 sequences the number of distinct experts to expect per layer, E (1 - (1 - K / "
    "E)^B) when tokens choose evenly and independently, with the weight bytes read per token. Real routing is "
    "uneven and touches fewer.\n"
    "\n"
    "Tensors are listed by pattern, with '*' for numbers of layers and experts; --tensors lists every one.",
    " thermoe inspect\n"
    " thermoe inspect OLMoE-1B-7B.gguf --tensors\n"
    " thermoe inspect model.gguf --experts nested --json"};

struct InspectFlags {
  ModelFlags model;
  std::string experts = "native";
  bool tensors = false;
  bool json = false;
};

// Weight bytes that every decode step reads, whatever the experts: all but routed experts and, where the output head
// has a matrix of its own, the embedding, of which a token reads one row.
double DenseBytes(const LoadedModel& model) {
  const auto ffn = [](const FfnWeights& weights) {
    double bytes = 0;
    for (const WeightMatrix* matrix : {&weights.gate, &weights.up, &weights.down}) {
      if (!matrix->empty()) bytes += static_cast<double>(matrix->bytes());
    }
    return bytes;
  };
  double bytes = static_cast<double>(model.weights.output.bytes());
  for (const LayerWeights& layer : model.weights.layers) {
    for (const WeightMatrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.shared_gate}) {
      if (!matrix->empty()) bytes += static_cast<double>(matrix->bytes());
    }
    bytes += ffn(layer.shared);
  }
  return bytes;
}

struct BatchCost {
  int batch = 1;
  double distinct = 0;            // experts per layer
  double bytes_per_token = 0;     // all planes
  double hi_bytes_per_token = 0;  // every expert by its hi plane; 0 for native storage
};

BatchCost CostAt(int batch, const ModelInfo& info, double dense_bytes) {
  const double experts = info.experts;
  const double distinct = experts * (1 - std::pow(1 - info.expert_slots / experts, batch));
  const auto bytes = [&](int64_t expert) {
    return (dense_bytes + info.moe_layers * distinct * static_cast<double>(expert)) / batch;
  };
  return {batch, distinct, bytes(info.expert_bytes), info.expert_hi_bytes > 0 ? bytes(info.expert_hi_bytes) : 0};
}

struct TensorGroup {
  std::string pattern, type;
  std::vector<int64_t> shape;
  int64_t count = 0, bytes = 0;
};

// "blk.3.attn_q.weight" -> "blk.*.attn_q.weight": a part of the name that is all digits.
std::string Pattern(const std::string& name) {
  std::string out;
  for (size_t i = 0; i < name.size();) {
    size_t end = std::min(name.find('.', i), name.size());
    const std::string part = name.substr(i, end - i);
    const bool digits =
        !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
    out += digits ? "*" : part;
    if (end < name.size()) out += '.';
    i = end + 1;
  }
  return out;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return Join(sizes, " x ");
}

std::vector<TensorGroup> GroupTensors(const std::vector<TensorInfo>& tensors, bool all) {
  std::vector<TensorGroup> groups;
  std::map<std::string, size_t> places;
  for (const TensorInfo& tensor : tensors) {
    const std::string pattern = all ? tensor.name : Pattern(tensor.name);
    const std::string key = pattern + " " + tensor.type + " " + ShapeText(tensor.shape);
    const auto [place, added] = places.emplace(key, groups.size());
    if (added) groups.push_back({pattern, tensor.type, tensor.shape});
    ++groups[place->second].count;
    groups[place->second].bytes += tensor.bytes;
  }
  return groups;
}

// The recognised chat template's name; else why there is none.
std::pair<std::string, std::string> ChatTemplateOf(const Model& model) {
  if (model.impl().loaded().chat_template.empty()) return {"", "the model has none"};
  const Result<std::shared_ptr<const ChatTemplate>> chat = model.chat_template();
  if (!chat.ok()) return {"", chat.status().message()};
  return {std::string((*chat)->name()), ""};
}

Json TensorsJson(const std::vector<TensorInfo>& tensors) {
  Json list = Json::array();
  for (const TensorInfo& tensor : tensors) {
    Json entry;
    entry["name"] = tensor.name;
    entry["type"] = tensor.type;
    entry["shape"] = tensor.shape;
    entry["bytes"] = tensor.bytes;
    list.push_back(std::move(entry));
  }
  return list;
}

Status PrintJson(const Model& model) {
  const ModelInfo& info = model.info();
  const auto [chat, chat_reason] = ChatTemplateOf(model);
  Json json = NewDocument();
  json["model"] = ModelJson(info);
  json["name"] = info.name;
  json["layers"] = info.layers;
  json["hidden"] = info.hidden;
  json["heads"] = info.heads;
  json["kv_heads"] = info.kv_heads;
  json["head_dim"] = info.head_dim;
  json["vocab"] = info.vocab;
  json["context"] = info.context;
  json["moe_layers"] = info.moe_layers;
  json["experts"] = info.experts;
  json["expert_slots"] = info.expert_slots;
  json["expert_width"] = info.expert_width;
  json["shared_expert_width"] = model.impl().config().shared_width;
  json["parameters"] = info.parameters;
  json["active_parameters"] = info.active_parameters;
  json["file_bytes"] = info.file_bytes;
  json["expert_bytes"] = info.expert_bytes;
  json["expert_hi_bytes"] = info.expert_hi_bytes > 0 ? Json(info.expert_hi_bytes) : Json();
  json["experts_requantised"] = info.experts_requantised;
  json["tokenizer"] = model.tokenizer().Describe();
  json["chat_template"] = chat.empty() ? Json() : Json(chat);
  const double dense_bytes = DenseBytes(model.impl().loaded());
  json["dense_bytes"] = dense_bytes;
  json["batches"] = Json::array();
  for (const int batch : kBatches) {
    const BatchCost cost = CostAt(batch, info, dense_bytes);
    Json entry;
    entry["batch"] = cost.batch;
    entry["distinct_experts"] = cost.distinct;
    entry["bytes_per_token"] = cost.bytes_per_token;
    entry["hi_bytes_per_token"] = cost.hi_bytes_per_token > 0 ? Json(cost.hi_bytes_per_token) : Json();
    json["batches"].push_back(std::move(entry));
  }
  json["tensors"] = TensorsJson(model.impl().loaded().tensors);
  return PrintJsonLine(json);
}

void PrintSummary(const Model& model) {
  const ModelInfo& info = model.info();
  const auto [chat, chat_reason] = ChatTemplateOf(model);
  const auto millions = [](int64_t count) {
    return count >= 1000000000 ? fmt::format("{:.2f} G", count / 1e9) : fmt::format("{:.2f} M", count / 1e6);
  };
  std::string expert = BytesText(static_cast<double>(info.expert_bytes));
  if (info.expert_hi_bytes > 0)
    expert += fmt::format(", hi plane alone {}", BytesText(static_cast<double>(info.expert_hi_bytes)));
  std::vector<std::pair<std::string, std::string>> fields = {
      {"model", info.name.empty() ? info.path : fmt::format("{} ({})", info.name, info.path)},
      {"architecture", fmt::format("{}, {}", info.architecture, info.format)},
      {"parameters",
       fmt::format("{}, {} active per token", millions(info.parameters), millions(info.active_parameters))},
      {"size", BytesText(static_cast<double>(info.file_bytes))},
      {"identity", info.identity},
      {"layers", fmt::format("{} of hidden size {}, {} with experts", info.layers, info.hidden, info.moe_layers)},
      {"attention", fmt::format("{} query and {} key-value heads of {}", info.heads, info.kv_heads, info.head_dim)},
      {"context", WithCommas(info.context) + " tokens"},
      {"experts", fmt::format("{} per layer, {} slots per token, width {}, {}", info.experts, info.expert_slots,
                              info.expert_width, info.expert_type)},
      {"one expert", expert}};
  if (const int32_t width = model.impl().config().shared_width; width > 0) {
    fields.emplace_back("shared expert", fmt::format("width {}", width));
  }
  fields.emplace_back("tokenizer", model.tokenizer().Describe());
  fields.emplace_back("chat template", chat.empty() ? chat_reason : chat);
  PrintFields(fields);
}

void PrintReport(const Model& model, bool all_tensors) {
  PrintSummary(model);
  const ModelInfo& info = model.info();
  Print("\n");
  std::vector<std::string> titles = {"decode batch", "distinct experts", "bytes/token"};
  if (info.expert_hi_bytes > 0) titles.push_back("by hi planes");
  Table costs(std::move(titles));
  for (const int batch : kBatches) {
    const BatchCost cost = CostAt(batch, info, DenseBytes(model.impl().loaded()));
    std::vector<std::string> row = {std::to_string(batch), fmt::format("{:.1f} of {}", cost.distinct, info.experts),
                                    BytesText(cost.bytes_per_token)};
    if (info.expert_hi_bytes > 0) row.push_back(BytesText(cost.hi_bytes_per_token));
    costs.Add(std::move(row));
  }
  costs.Print();
  Print("\n");
  Table tensors({"tensor", "count", "type", "shape", "bytes"});
  for (const TensorGroup& group : GroupTensors(model.impl().loaded().tensors, all_tensors)) {
    tensors.Add({group.pattern, WithCommas(group.count), group.type, ShapeText(group.shape),
                 BytesText(static_cast<double>(group.bytes))});
  }
  tensors.Print();
}

Status Inspect(const InspectFlags& flags) {
  const ExpertStorage storage = flags.experts == "nested" ? ExpertStorage::kNested : ExpertStorage::kNative;
  const Result<OpenedModel> opened = OpenModel(flags.model, storage, /*to_run=*/false);
  if (!opened.ok()) return opened.status();
  if (flags.json) {
    return PrintJson(*opened->model);
  } else {
    PrintReport(*opened->model, flags.tensors);
  }
  return Status::Ok();
}

}  // namespace

Command MakeInspectCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("inspect", "print what a model file holds");
  auto flags = std::make_shared<InspectFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/false);
  AddChoice(app, "--experts", &flags->experts, {"native", "nested"}, "Expert storage to report; default native.");
  app->add_flag("--tensors", flags->tensors, "List every tensor.");
  app->add_flag("--json", flags->json, "Print one JSON object with every tensor; errors become JSON too.");
  return {app, [flags] { return Inspect(*flags); }};
}

}  // namespace thermoe
