// SPDX-License-Identifier: Apache-2.0
// Measured points in a SQLite file. Every point is a transaction: a run that is cut off loses at most the one it was
// measuring.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control/cost/cost_model.h"
#include "thermoe/status.h"

struct sqlite3;

namespace thermoe {

// What a profile is of. Points of different keys never mix.
struct ProfileKey {
  std::string device;   // "AMD EPYC ..."
  std::string backend;  // "cpu/avx512, 2 threads"
  std::string model;    // identity and how its experts are kept
  std::string build;    // version of thermoe

  bool operator==(const ProfileKey&) const = default;
};

class ProfileStore {
 public:
  // Opens or makes the file and the folders above it. kCorrupt: the file is damaged, no profile store, or of a newer
  // schema; kInvalidArgument: it cannot be written.
  static Result<std::unique_ptr<ProfileStore>> Open(const std::string& path);
  // Only to Load: makes nothing, and the file may be write-protected. kNotFound where there is no file; else as above.
  static Result<std::unique_ptr<ProfileStore>> OpenToRead(const std::string& path);
  ~ProfileStore();
  ProfileStore(const ProfileStore&) = delete;
  ProfileStore& operator=(const ProfileStore&) = delete;

  // In the order in which they were added; none for a key that was never used.
  Result<std::vector<CostPoint>> Load(const ProfileKey& key);
  // Replaces a point of the same shape.
  Status Add(const ProfileKey& key, const CostPoint& point);
  // Those of this model, in the order in which they were first measured.
  Result<std::vector<ProfileKey>> KeysOf(const std::string& model);
  // Forgets the key's points.
  Status Clear(const ProfileKey& key);

  const std::string& path() const { return path_; }

 private:
  ProfileStore(std::string path, sqlite3* db) : path_(std::move(path)), db_(db) {}
  static Result<std::unique_ptr<ProfileStore>> OpenAs(const std::string& path, int flags);
  Status Prepare();
  Status Execute(const char* sql);
  Status Failed() const;

  std::string path_;
  sqlite3* db_;
};

}  // namespace thermoe
