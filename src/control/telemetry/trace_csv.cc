// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/trace_csv.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "base/errors.h"
#include "base/utf8.h"
#include "control/telemetry/snapshot_fields.h"

namespace thermoe {
namespace {

constexpr std::string_view kStates[] = {"ok", "stale", "lost"};  // in the order of SourceState
constexpr double kHoldIntervals = 1.5;
constexpr double kMaxPowerWindow_s = 1;  // as live: a mean over longer is not what the device does now

// Where a cell stands, for errors.
struct Place {
  const std::string& name;
  int line;
  std::string_view column;
};

// Bytes of a file, fit for a message.
std::string Quoted(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown + (text.size() > 40 ? "..." : "");
}

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

// Cells of one line. Quotes keep commas in a cell; they and doubled quotes inside stay, as only ignored columns have
// them.
std::vector<std::string_view> Cells(std::string_view line) {
  std::vector<std::string_view> cells;
  bool quoted = false;
  size_t start = 0;
  for (size_t i = 0; i <= line.size(); ++i) {
    if (i < line.size() && line[i] == '"') quoted = !quoted;
    if (i == line.size() || (line[i] == ',' && !quoted)) {
      cells.push_back(Trimmed(line.substr(start, i - start)));
      start = i + 1;
    }
  }
  return cells;
}

// An empty cell is no value.
Result<std::optional<double>> Number(std::string_view cell, const Place& place, double min, double max) {
  if (cell.empty()) return std::optional<double>();
  double value = 0;
  const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (error != std::errc() || end != cell.data() + cell.size() || !std::isfinite(value)) {
    return Corrupt("{}: line {}, column {}: \"{}\" is no number; write one like 12.5, or nothing if it is unknown",
                   place.name, place.line, place.column, Quoted(cell));
  }
  if (value < min || value > max) {
    return Corrupt("{}: line {}, column {}: {} is outside {} to {}; leave the cell empty if it is unknown", place.name,
                   place.line, place.column, value, min, max);
  }
  return std::optional(value);
}

// Reads rows of cells into snapshots, given where each column stands.
class RowReader {
 public:
  // Finds the columns. Errors: no time_s, nothing else, a name twice.
  Status ReadHeader(const std::vector<std::string_view>& cells, const std::string& name, int line);
  Status ReadRow(const std::vector<std::string_view>& cells, const std::string& name, int line, Trace* trace);
  const std::vector<std::string>& columns() const { return columns_; }

 private:
  struct Column {
    size_t cell;
    const SnapshotField* field;
  };

  size_t cells_ = 0;
  std::optional<size_t> time_, throttle_, state_, average_;
  std::vector<Column> fields_;
  bool has_power_ = false;
  std::vector<std::string> columns_;
  std::optional<double> last_counter_j_, last_counter_s_;
  double energy_j_ = 0;
};

Status RowReader::ReadHeader(const std::vector<std::string_view>& cells, const std::string& name, int line) {
  cells_ = cells.size();
  for (size_t i = 0; i < cells.size(); ++i) {
    const auto same = [&](const SnapshotField& field) { return cells[i] == field.column; };
    const auto table = SnapshotFields();
    const auto field = std::find_if(table.begin(), table.end(), same);
    bool known = true;
    if (field != table.end()) {
      fields_.push_back({i, &*field});
      has_power_ = has_power_ || field->value == &Snapshot::power_w;
    } else if (cells[i] == "time_s") {
      time_ = i;
    } else if (cells[i] == "throttle") {
      throttle_ = i;
    } else if (cells[i] == "state") {
      state_ = i;
    } else if (cells[i] == "power_avg_w") {
      average_ = i;
    } else {
      known = false;
    }
    if (!known) continue;
    if (std::find(columns_.begin(), columns_.end(), cells[i]) != columns_.end()) {
      return Corrupt("{}: line {}, column {}: stands twice; rename one of them", name, line, cells[i]);
    }
    columns_.emplace_back(cells[i]);
  }
  if (!time_) {
    return Corrupt(
        "{}: line {}, column time_s: is missing; the first line that is no comment names the columns, time_s "
        "among them",
        name, line);
  }
  if (columns_.size() == 1) {
    return Corrupt("{}: line {}, column time_s: stands alone; add columns such as power_from_energy_w or gpu_temp_c",
                   name, line);
  }
  return {};
}

Status RowReader::ReadRow(const std::vector<std::string_view>& cells, const std::string& name, int line, Trace* trace) {
  if (cells.size() != cells_) {
    return Corrupt(
        "{}: line {}, column {}: the line has {} cells and the header {}; unknown values need their commas too", name,
        line, std::min(cells.size(), cells_) + 1, cells.size(), cells_);
  }
  Snapshot row;
  row.state = SourceState::kOk;
  const auto time_s = Number(cells[*time_], {name, line, "time_s"}, -1e12, 1e12);
  if (!time_s.ok()) return time_s.status();
  if (!*time_s) return Corrupt("{}: line {}, column time_s: is empty; every row needs its time", name, line);
  row.time_s = **time_s;
  if (!trace->rows.empty() && !(row.time_s > trace->rows.back().time_s)) {
    return Corrupt("{}: line {}, column time_s: {} does not follow {}; sort the rows by time", name, line, row.time_s,
                   trace->rows.back().time_s);
  }
  for (const Column& column : fields_) {
    const SnapshotField& field = *column.field;
    const auto value =
        Number(cells[column.cell], {name, line, field.column}, field.min * field.scale, field.max * field.scale);
    if (!value.ok()) return value.status();
    if (*value) row.*field.value = **value / field.scale;
  }
  if (throttle_) {
    const auto bits = Number(cells[*throttle_], {name, line, "throttle"}, 0, kAllThrottleBits);
    if (!bits.ok()) return bits.status();
    if (*bits) row.throttle = static_cast<uint32_t>(**bits);
  }
  std::optional<double> average_w;
  if (average_) {
    const auto value = Number(cells[*average_], {name, line, "power_avg_w"}, 0, 1e6);
    if (!value.ok()) return value.status();
    average_w = *value;
  }
  if (state_ && !cells[*state_].empty()) {
    const auto state = std::find(std::begin(kStates), std::end(kStates), cells[*state_]);
    if (state == std::end(kStates)) {
      return Corrupt("{}: line {}, column state: \"{}\" is none of ok, stale, lost; correct it or leave it empty", name,
                     line, Quoted(cells[*state_]));
    }
    row.state = static_cast<SourceState>(state - std::begin(kStates));
  }

  if (const auto counter_j = row.energy_j) {
    const double gained_j = std::max(0.0, *counter_j - last_counter_j_.value_or(*counter_j));  // a fall is a reset
    energy_j_ += gained_j;
    row.energy_j = energy_j_;
    const double span_s = row.time_s - last_counter_s_.value_or(row.time_s);
    if (!has_power_ && gained_j > 0 && span_s > 0 && span_s <= kMaxPowerWindow_s) row.power_w = gained_j / span_s;
    last_counter_j_ = counter_j;
    last_counter_s_ = row.time_s;
  }
  if (!row.power_w) row.power_w = average_w;
  DropImplausible(&row);
  trace->rows.push_back(row.state == SourceState::kLost ? LostAt(row.time_s) : row);
  return {};
}

double HoldOf(const std::vector<Snapshot>& rows) {
  if (rows.size() < 2) return kStaleAfter_s;
  std::vector<double> intervals_s;
  for (size_t i = 1; i < rows.size(); ++i) intervals_s.push_back(rows[i].time_s - rows[i - 1].time_s);
  const auto median = intervals_s.begin() + static_cast<ptrdiff_t>(intervals_s.size() / 2);
  std::nth_element(intervals_s.begin(), median, intervals_s.end());
  return std::max(kStaleAfter_s, kHoldIntervals * *median);
}

}  // namespace

Result<Trace> ParseTrace(std::string_view text, const std::string& name) {
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  Trace trace;
  RowReader reader;
  bool header = false;
  int line = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view content = Trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line;
    if (content.empty() || content.front() == '#') continue;
    const Status status =
        header ? reader.ReadRow(Cells(content), name, line, &trace) : reader.ReadHeader(Cells(content), name, line);
    if (!status.ok()) return status;
    header = true;
  }
  if (trace.rows.empty()) {
    return Corrupt("{}: line {}, column time_s: there is no row; record one with `thermoe record`", name, line);
  }
  trace.hold_s = HoldOf(trace.rows);
  trace.columns = reader.columns();
  return trace;
}

Result<Trace> ReadTrace(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) return NotFound("{}: no such file; check the path", path);
  if (!std::filesystem::is_regular_file(status)) {
    return InvalidArgument("{}: is not a regular file; give a CSV file as `thermoe record` writes it", path);
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return InvalidArgument("{}: cannot be read; check its permissions", path);
  return ParseTrace(text, path);
}

std::string TraceHeader(const std::string& source_name) {
  std::string text = "# thermoe trace 1. An empty cell is unknown; lines that begin with # are comments.\n";
  text += fmt::format("# source: {}\n# time_s: time, rises\n# state: ok, stale (a sensor rests) or lost\n",
                      Quoted(source_name));
  std::string columns = "time_s,state";
  for (const SnapshotField& field : SnapshotFields()) {
    text += fmt::format("# {}: {}\n", field.column, field.meaning);
    columns += fmt::format(",{}", field.column);
  }
  text += "# throttle: why clocks are lowered, a sum of 1 power limit, 2 thermal, 4 power brake, 8 other\n";
  return text + columns + ",throttle\n";
}

std::string TraceLine(const Snapshot& snapshot) {
  std::string line = fmt::format("{:.6f},{}", snapshot.time_s, kStates[static_cast<size_t>(snapshot.state)]);
  for (const SnapshotField& field : SnapshotFields()) {
    const std::optional<double>& value = snapshot.*field.value;
    line += value ? fmt::format(",{:.10g}", *value * field.scale) : ",";
  }
  line += snapshot.throttle ? fmt::format(",{}\n", *snapshot.throttle) : ",\n";
  return line;
}

}  // namespace thermoe
