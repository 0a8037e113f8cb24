// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "runtime/threads.h"

namespace thermoe::kernels {
namespace {

using ::testing::HasSubstr;

// Sets or clears a variable for one scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name); before != nullptr) before_ = before;
    value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
  }
  ~ScopedVariable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

class Dispatch : public ::testing::Test {
 protected:
  std::string NameOf(std::string_view backend, std::string_view isa) {
    Result<std::unique_ptr<Ops>> ops = MakeOps(backend, isa, &threads_);
    return ops.ok() ? std::string(ops.value()->name()) : ops.status().message();
  }

  ThreadPool threads_{1};
  ScopedVariable backend_{"THERMOE_BACKEND", nullptr};
  ScopedVariable isa_{"THERMOE_ISA", nullptr};
};

TEST_F(Dispatch, PortableIsAlwaysThereAndFirst) {
  ASSERT_FALSE(SupportedIsas().empty());
  EXPECT_EQ(SupportedIsas().front(), "portable");
}

TEST_F(Dispatch, EveryListedSetCanBeMadeAndSaysItsName) {
  for (const std::string& isa : SupportedIsas()) EXPECT_EQ(NameOf("cpu", isa), "cpu/" + isa);
}

TEST_F(Dispatch, TheDefaultIsTheBestListed) {
  EXPECT_EQ(NameOf("", ""), "cpu/" + SupportedIsas().back());
  EXPECT_EQ(NameOf("reference", ""), "reference");
}

TEST_F(Dispatch, TheEnvironmentPins) {
  const ScopedVariable isa("THERMOE_ISA", "portable");
  EXPECT_EQ(NameOf("", ""), "cpu/portable");
  {
    const ScopedVariable backend("THERMOE_BACKEND", "reference");
    EXPECT_EQ(NameOf("", ""), "reference");
    EXPECT_EQ(NameOf("cpu", ""), "cpu/portable") << "arguments come before the environment";
  }
  EXPECT_EQ(NameOf("", SupportedIsas().back()), "cpu/" + SupportedIsas().back());
}

TEST_F(Dispatch, UnknownNamesAreRefusedWithWhatThereIs) {
  const Result<std::unique_ptr<Ops>> backend = MakeOps("tpu", "", &threads_);
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(backend.status().message(), AllOf(HasSubstr("\"tpu\""), HasSubstr("cpu"), HasSubstr("reference")));

  const Result<std::unique_ptr<Ops>> isa = MakeCpuOps(&threads_, "avx9000");
  ASSERT_FALSE(isa.ok());
  EXPECT_EQ(isa.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(isa.status().message(), AllOf(HasSubstr("\"avx9000\""), HasSubstr("portable"), HasSubstr("THERMOE_ISA")));
}

TEST_F(Dispatch, UnknownNamesInTheEnvironmentAreRefusedToo) {
  {
    const ScopedVariable isa("THERMOE_ISA", "sse5");
    EXPECT_EQ(MakeOps("", "", &threads_).status().code(), StatusCode::kInvalidArgument);
  }
  const ScopedVariable backend("THERMOE_BACKEND", "gpu");
  EXPECT_EQ(MakeOps("", "", &threads_).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace thermoe::kernels
