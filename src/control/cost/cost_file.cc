// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_file.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <fstream>
#include <string_view>

#include "base/errors.h"

namespace thermoe {
namespace {

constexpr std::string_view kFirstLine = "# thermoe costs 1";
constexpr std::string_view kColumns =
    "family,type,down_type,interleaved,matrix_rows,matrix_cols,kv_heads,rope_dim,tokens,positions,distinct_positions,experts,experts_full,experts_hi,"
    "slots_full,slots_hi,latency_us,spread_frac,energy_j,held_out";
constexpr size_t kCells = 20;

template <typename T>
bool ReadNumber(std::string_view cell, T* value) {
  const auto parsed = std::from_chars(cell.data(), cell.data() + cell.size(), *value);
  return parsed.ec == std::errc() && parsed.ptr == cell.data() + cell.size();
}

bool ReadLine(std::string_view line, CostPoint* point) {
  std::string_view cells[kCells];
  for (size_t i = 0; i < kCells; ++i) {
    const size_t comma = line.find(',');
    if ((comma == std::string_view::npos) != (i + 1 == kCells)) return false;
    cells[i] = line.substr(0, comma);
    line = comma == std::string_view::npos ? std::string_view() : line.substr(comma + 1);
  }
  OperationShape& shape = point->shape;
  const FamilyInfo* family = FindFamily(cells[0]);
  if (family == nullptr || !FindType(cells[1], &shape.matrix.type) || !FindType(cells[2], &shape.down_type)) return false;
  shape.family = family->family;
  int interleaved = 0, held_out = 0;
  if (!ReadNumber(cells[3], &interleaved) || !ReadNumber(cells[19], &held_out)) return false;
  shape.matrix.interleaved = interleaved != 0;
  point->held_out = held_out != 0;
  if (!ReadNumber(cells[6], &shape.kv_heads) || !ReadNumber(cells[7], &shape.rope_dim)) return false;
  int64_t* const whole[] = {&shape.matrix.rows, &shape.matrix.cols};
  for (size_t i = 0; i < 2; ++i) {
    if (!ReadNumber(cells[4 + i], whole[i])) return false;
  }
  int64_t* const counts[] = {&shape.tokens,       &shape.positions,  &shape.distinct_positions, &shape.experts,
                             &shape.experts_full, &shape.experts_hi, &shape.slots_full,         &shape.slots_hi};
  for (size_t i = 0; i < std::size(counts); ++i) {
    if (!ReadNumber(cells[8 + i], counts[i]) || *counts[i] < 0) return false;
  }
  if (!ReadNumber(cells[16], &point->latency_us) || !ReadNumber(cells[17], &point->spread_frac)) return false;
  if (!cells[18].empty()) {
    double energy_j = 0;
    if (!ReadNumber(cells[18], &energy_j)) return false;
    point->energy_j = energy_j;
  }
  const kernels::OpCost cost = CostOf(shape);
  point->bytes = BytesOf(cost);
  point->flops = cost.flops;
  return std::isfinite(point->latency_us) && point->latency_us > 0;
}

}  // namespace

std::string CostFileText(const CostFile& file) {
  std::string text = fmt::format("{}\n# device: {}\n# backend: {}\n# model: {}\n# build: {}\n{}\n", kFirstLine, file.key.device, file.key.backend,
                                 file.key.model, file.key.build, kColumns);
  for (const CostPoint& point : file.points) {
    const OperationShape& s = point.shape;
    text += fmt::format("{},{},{},{:d},{},{},{},{},{},{},{},{},{},{},{},{},{:.5g},{:.3g},{},{:d}\n", InfoOf(s.family).name, TraitsOf(s.matrix.type).name,
                        TraitsOf(s.down_type).name, s.matrix.interleaved, s.matrix.rows, s.matrix.cols, s.kv_heads, s.rope_dim, s.tokens, s.positions,
                        s.distinct_positions, s.experts, s.experts_full, s.experts_hi, s.slots_full, s.slots_hi, point.latency_us, point.spread_frac,
                        point.energy_j ? fmt::format("{:.5g}", *point.energy_j) : "", point.held_out);
  }
  return text;
}

Result<CostFile> ReadCostFile(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) return NotFound("{}: there is no such file of costs; 'thermoe profile --export' writes one", path);
  CostFile file;
  int number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (number == 1 && line != kFirstLine) return Corrupt("{}: is no file of costs of this version (\"{}\" is its first line)", path, kFirstLine);
    const auto header = [&](std::string_view name, std::string* value) {
      const std::string start = fmt::format("# {}: ", name);
      if (line.starts_with(start)) *value = line.substr(start.size());
    };
    header("device", &file.key.device), header("backend", &file.key.backend), header("model", &file.key.model), header("build", &file.key.build);
    if (line.empty() || line.front() == '#' || line == kColumns) continue;
    CostPoint point;
    if (!ReadLine(line, &point)) return Corrupt("{}: line {} is no measured point; export the profile again", path, number);
    file.points.push_back(std::move(point));
  }
  if (file.points.empty()) return Corrupt("{}: holds no points; export the profile again", path);
  return file;
}

}  // namespace thermoe
