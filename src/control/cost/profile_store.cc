// SPDX-License-Identifier: Apache-2.0
#include "control/cost/profile_store.h"

#include <sqlite3.h>

#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr int kApplicationId = 0x74686d6f;  // "thmo": tells our files from other databases
constexpr int kSchemaVersion = 1;
constexpr int kBusyWait_ms = 5000;

constexpr const char* kSchema = R"sql(
CREATE TABLE profiles (
  id INTEGER PRIMARY KEY,
  device TEXT NOT NULL, backend TEXT NOT NULL, model TEXT NOT NULL, build TEXT NOT NULL,
  UNIQUE (device, backend, model, build));
CREATE TABLE points (
  profile INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE,
  shape TEXT NOT NULL,
  family TEXT NOT NULL, type TEXT NOT NULL, down_type TEXT NOT NULL, interleaved INTEGER NOT NULL,
  matrix_rows INTEGER NOT NULL, matrix_cols INTEGER NOT NULL, kv_heads INTEGER NOT NULL, rope_dim INTEGER NOT NULL,
  tokens INTEGER NOT NULL, positions INTEGER NOT NULL, distinct_positions INTEGER NOT NULL,
  experts INTEGER NOT NULL, experts_full INTEGER NOT NULL, experts_hi INTEGER NOT NULL,
  slots_full INTEGER NOT NULL, slots_hi INTEGER NOT NULL,
  latency_us REAL NOT NULL, spread_frac REAL NOT NULL, energy_j REAL, bytes REAL NOT NULL, flops REAL NOT NULL,
  held_out INTEGER NOT NULL,
  UNIQUE (profile, shape));
)sql";

// A prepared statement with the values of its parameters; finalised at the end of its scope.
class Statement {
 public:
  Statement(sqlite3* db, const char* sql) { code_ = sqlite3_prepare_v2(db, sql, -1, &statement_, nullptr); }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Bind(std::string_view text) {
    if (code_ == SQLITE_OK)
      code_ = sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& Bind(int64_t number) {
    if (code_ == SQLITE_OK) code_ = sqlite3_bind_int64(statement_, ++bound_, number);
    return *this;
  }
  Statement& Bind(double number) {
    if (code_ == SQLITE_OK) code_ = sqlite3_bind_double(statement_, ++bound_, number);
    return *this;
  }
  Statement& BindNull() {
    if (code_ == SQLITE_OK) code_ = sqlite3_bind_null(statement_, ++bound_);
    return *this;
  }
  // True while there is a row.
  bool Step() {
    if (code_ == SQLITE_OK || code_ == SQLITE_ROW) code_ = sqlite3_step(statement_);
    return code_ == SQLITE_ROW;
  }
  bool ok() const { return code_ == SQLITE_OK || code_ == SQLITE_ROW || code_ == SQLITE_DONE; }
  // The columns of a row, from the left.
  int64_t Integer() { return sqlite3_column_int64(statement_, column_++); }
  double Number() { return sqlite3_column_double(statement_, column_++); }
  bool IsNull() { return sqlite3_column_type(statement_, column_) == SQLITE_NULL; }
  std::string Text() {
    const unsigned char* text = sqlite3_column_text(statement_, column_++);
    return text == nullptr ? std::string() : std::string(reinterpret_cast<const char*>(text));
  }
  void FirstColumn() { column_ = 0; }

 private:
  sqlite3_stmt* statement_ = nullptr;
  int code_ = SQLITE_OK;
  int bound_ = 0, column_ = 0;
};

// A row as the SELECT in Load orders it. False for values that no version of this schema writes.
bool ReadPoint(Statement* row, CostPoint* point) {
  row->FirstColumn();
  OperationShape& shape = point->shape;
  const FamilyInfo* family = FindFamily(row->Text());
  const std::string type = row->Text(), down_type = row->Text();
  if (family == nullptr || !FindType(type, &shape.matrix.type) || !FindType(down_type, &shape.down_type)) return false;
  shape.family = family->family;
  shape.matrix.interleaved = row->Integer() != 0;
  shape.matrix.rows = row->Integer();
  shape.matrix.cols = row->Integer();
  shape.kv_heads = static_cast<int32_t>(row->Integer());
  shape.rope_dim = static_cast<int32_t>(row->Integer());
  for (int64_t* value : {&shape.tokens, &shape.positions, &shape.distinct_positions, &shape.experts,
                         &shape.experts_full, &shape.experts_hi, &shape.slots_full, &shape.slots_hi}) {
    *value = row->Integer();
    if (*value < 0) return false;
  }
  point->latency_us = row->Number();
  point->spread_frac = row->Number();
  if (row->IsNull()) {
    row->Number();
  } else {
    point->energy_j = row->Number();
  }
  point->bytes = row->Number();
  point->flops = row->Number();
  point->held_out = row->Integer() != 0;
  return std::isfinite(point->latency_us) && point->latency_us > 0;
}

}  // namespace

ProfileStore::~ProfileStore() { sqlite3_close(db_); }

Status ProfileStore::Failed() const {
  const int code = sqlite3_errcode(db_) & 0xff;
  if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT) {
    return Corrupt("{}: is damaged or no profile store ({}); move it away and run 'thermoe profile' again", path_,
                   sqlite3_errmsg(db_));
  }
  if (code == SQLITE_FULL) return ResourceExhausted("{}: the disk is full; free some space", path_);
  return InvalidArgument("{}: cannot be read or written ({}); check its permissions and that no other program holds it",
                         path_, sqlite3_errmsg(db_));
}

Status ProfileStore::Execute(const char* sql) {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? Status::Ok() : Failed();
}

Status ProfileStore::Prepare() {
  sqlite3_busy_timeout(db_, kBusyWait_ms);
  int64_t application = 0, version = 0, tables = 0;
  {
    Statement pragma(
        db_,
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version), "
        "(SELECT count(*) FROM sqlite_master)");
    if (!pragma.Step()) return Failed();
    application = pragma.Integer();
    version = pragma.Integer();
    tables = pragma.Integer();
  }
  if (tables == 0 && application == 0) {
    THERMOE_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    const std::string sql = fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}; {}", kApplicationId,
                                        kSchemaVersion, kSchema);
    if (const Status made = Execute(sql.c_str()); !made.ok()) {
      (void)Execute("ROLLBACK");
      return made;
    }
    THERMOE_RETURN_IF_ERROR(Execute("COMMIT"));
  } else if (application != kApplicationId) {
    return Corrupt("{}: is a database of another program, not a profile store; choose another path", path_);
  } else if (version != kSchemaVersion) {
    return Corrupt("{}: has schema version {} but this build reads {}; move it away or use the build that wrote it",
                   path_, version, kSchemaVersion);
  }
  THERMOE_RETURN_IF_ERROR(Execute("PRAGMA foreign_keys = ON"));
  return Execute(
      "SELECT count(*) FROM profiles; SELECT count(*) FROM points");  // reads the pages, so that damage shows now
}

Result<std::unique_ptr<ProfileStore>> ProfileStore::Open(const std::string& path) {
  std::error_code error;
  if (const fs::path folder = fs::path(path).parent_path(); !folder.empty()) fs::create_directories(folder, error);
  if (error) return InvalidArgument("{}: its folder cannot be made: {}; choose another path", path, error.message());
  return OpenAs(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
}

Result<std::unique_ptr<ProfileStore>> ProfileStore::OpenToRead(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return NotFound("{}: there is no such file; run 'thermoe profile'", path);
  return OpenAs(path, SQLITE_OPEN_READONLY);
}

Result<std::unique_ptr<ProfileStore>> ProfileStore::OpenAs(const std::string& path, int flags) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &db, flags, nullptr);
  std::unique_ptr<ProfileStore> store(new ProfileStore(path, db));
  if (db == nullptr) return ResourceExhausted("{}: memory ran out while it was opened", path);
  if (code != SQLITE_OK) return store->Failed();
  THERMOE_RETURN_IF_ERROR(store->Prepare());
  return store;
}

Result<std::vector<CostPoint>> ProfileStore::Load(const ProfileKey& key) {
  Statement select(
      db_,
      "SELECT family, type, down_type, interleaved, matrix_rows, matrix_cols, kv_heads, rope_dim, tokens, positions, "
      "distinct_positions, experts, experts_full, experts_hi, slots_full, slots_hi, latency_us, spread_frac, energy_j, "
      "bytes, flops, held_out FROM points JOIN profiles ON profiles.id = profile "
      "WHERE device = ? AND backend = ? AND model = ? AND build = ? ORDER BY points.rowid");
  select.Bind(key.device).Bind(key.backend).Bind(key.model).Bind(key.build);
  std::vector<CostPoint> points;
  while (select.Step()) {
    CostPoint point;
    if (!ReadPoint(&select, &point)) {
      return Corrupt("{}: point {} of {} makes no sense; move the file away and run 'thermoe profile' again", path_,
                     points.size() + 1, key.backend);
    }
    points.push_back(std::move(point));
  }
  if (!select.ok()) return Failed();
  return points;
}

Status ProfileStore::Add(const ProfileKey& key, const CostPoint& point) {
  THERMOE_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
  Statement profile(db_, "INSERT OR IGNORE INTO profiles (device, backend, model, build) VALUES (?, ?, ?, ?)");
  profile.Bind(key.device).Bind(key.backend).Bind(key.model).Bind(key.build).Step();
  Statement insert(db_,
                   "INSERT OR REPLACE INTO points VALUES ((SELECT id FROM profiles WHERE device = ? AND backend = ? "
                   "AND model = ? AND "
                   "build = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  insert.Bind(key.device).Bind(key.backend).Bind(key.model).Bind(key.build);
  const OperationShape& shape = point.shape;
  insert.Bind(TextOf(shape))
      .Bind(InfoOf(shape.family).name)
      .Bind(TraitsOf(shape.matrix.type).name)
      .Bind(TraitsOf(shape.down_type).name);
  for (const int64_t value :
       {int64_t{shape.matrix.interleaved}, shape.matrix.rows, shape.matrix.cols, int64_t{shape.kv_heads},
        int64_t{shape.rope_dim}, shape.tokens, shape.positions, shape.distinct_positions, shape.experts,
        shape.experts_full, shape.experts_hi, shape.slots_full, shape.slots_hi}) {
    insert.Bind(value);
  }
  insert.Bind(point.latency_us).Bind(point.spread_frac);
  if (point.energy_j) {
    insert.Bind(*point.energy_j);
  } else {
    insert.BindNull();
  }
  insert.Bind(point.bytes).Bind(point.flops).Bind(int64_t{point.held_out}).Step();
  if (!profile.ok() || !insert.ok()) {
    const Status failed = Failed();
    (void)Execute("ROLLBACK");
    return failed;
  }
  return Execute("COMMIT");
}

Result<std::vector<ProfileKey>> ProfileStore::KeysOf(const std::string& model) {
  Statement select(db_, "SELECT device, backend, build FROM profiles WHERE model = ? ORDER BY profiles.rowid");
  select.Bind(model);
  std::vector<ProfileKey> keys;
  while (select.Step()) {
    select.FirstColumn();
    ProfileKey key;
    key.device = select.Text();
    key.backend = select.Text();
    key.model = model;
    key.build = select.Text();
    keys.push_back(std::move(key));
  }
  if (!select.ok()) return Failed();
  return keys;
}

Status ProfileStore::Clear(const ProfileKey& key) {
  Statement remove(db_, "DELETE FROM profiles WHERE device = ? AND backend = ? AND model = ? AND build = ?");
  remove.Bind(key.device).Bind(key.backend).Bind(key.model).Bind(key.build).Step();
  return remove.ok() ? Status::Ok() : Failed();
}

}  // namespace thermoe
