// SPDX-License-Identifier: Apache-2.0
// How thermoe reports failure. Nothing in the library prints, exits or throws across include/.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace thermoe {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // the caller's request is wrong; the text says what to change
  kNotFound,           // a file or name does not exist
  kCorrupt,            // a file's bytes contradict themselves or its format
  kUnsupported,        // well-formed, but not something this build can run
  kResourceExhausted,  // memory, KV cache or disk would be exceeded
  kCancelled,          // the caller asked to stop
  kInternal,           // a defect of thermoe or of the machine
};

// The code's stable lower-case name, as it stands in JSON errors ("invalid_argument").
const char* StatusCodeName(StatusCode code);

// Success, or a code and one sentence: what is wrong, where, and what to do.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return {}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or the Status that says why there is none. value() may be called only when ok().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit by design

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace thermoe
