// SPDX-License-Identifier: Apache-2.0
#include "calibrate_features.h"

#include <fmt/format.h>
#include <unistd.h>

#include "base/errors.h"
#include "engine/features.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "terminal.h"

namespace thermoe {

Status CalibrateFeatures(const Model& model, const std::vector<std::vector<EvalWindow>>& texts, int threads, const std::string& path, bool json) {
  std::vector<std::vector<TokenId>> windows;
  int64_t tokens = 0;
  for (const std::vector<EvalWindow>& text : texts) {
    for (const EvalWindow& window : text) {
      windows.push_back(window.ids);
      tokens += static_cast<int64_t>(window.ids.size());
    }
  }
  ProgressBar bar("activations");
  const Result<FeatureStatistics> features = MeasureFeatures(model, windows, threads, [&](double done_frac) {
    bar.Update(done_frac);
    return !Interrupted();
  });
  if (!features.ok()) return Interrupted() ? InterruptedStatus() : features.status();
  THERMOE_RETURN_IF_ERROR(WriteFeatures(path, model.info().identity, *features));
  if (json) {
    Json document = NewDocument();
    document["file"] = path;
    document["tokens"] = tokens;
    return PrintJsonLine(document);
  }
  Print(fmt::format("mean and variance of {} activations over {} tokens in {}\n", features->mean.size(), WithCommas(tokens),
                    Printable(path, STDOUT_FILENO)));
  return FlushOutput();
}

}  // namespace thermoe
