// SPDX-License-Identifier: Apache-2.0
// An NvmlSource over the fake library, in virtual time, with a device whose counter runs.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>

#include "control/fake_nvml.h"
#include "control/telemetry/nvml_source.h"
#include "control/telemetry_testing.h"

namespace thermoe {

inline FakeNvml* ScriptOf(void* handle) {
  auto* const get = reinterpret_cast<FakeNvml* (*)()>(dlsym(handle, "fake_nvml"));
  return get != nullptr ? get() : nullptr;
}

class NvmlFixture : public ::testing::Test {
 protected:
  static constexpr double kPoll_s = 0.025;

  void SetUp() override {
    handle_ = dlopen(THERMOE_FAKE_NVML, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(handle_, nullptr) << dlerror();
    fake_ = ScriptOf(handle_);
    ASSERT_NE(fake_, nullptr);
    *fake_ = FakeNvml();
  }

  // The fake, without the symbols that `hidden` names.
  NvmlLibrary Library(const std::set<std::string>& hidden = {}) {
    return {"fake_nvml", BindNvml([this, hidden](const char* symbol) -> void* {
              return hidden.count(symbol) > 0 ? nullptr : dlsym(handle_, symbol);
            })};
  }

  void OpenSource(const std::set<std::string>& hidden = {}) {
    auto opened = NvmlSource::Open(Library(hidden), 0, clock_.clock());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    source_ = std::move(opened).value();
    opened_s_ = clock_.now_s;
  }

  // One poll later: the device has used energy at power_w_, which its counter shows every 100 ms.
  Snapshot Poll(double wait_s = kPoll_s) {
    clock_.now_s += wait_s;
    if (counting_) {
      used_j_ += power_w_ * wait_s;
      since_change_s_ += wait_s;
      if (since_change_s_ > 0.1 - 1e-9) {
        since_change_s_ = std::fmod(since_change_s_ + 1e-9, 0.1);
        fake_->energy_mj += static_cast<unsigned long long>(std::llround(used_j_ * 1000));
        if (counter_end_ != 0) fake_->energy_mj %= counter_end_;
        used_j_ = 0;
      }
    }
    const Snapshot snapshot = source_->Read();
    EXPECT_TRUE(Sane(snapshot));
    EXPECT_GE(snapshot.time_s, last_time_s_);
    last_time_s_ = snapshot.time_s;
    if (snapshot.energy_j) {
      EXPECT_GE(*snapshot.energy_j, last_energy_j_);
      last_energy_j_ = *snapshot.energy_j;
    }
    return snapshot;
  }
  // Polls for a while; the last snapshot.
  Snapshot Run(double seconds) {
    Snapshot snapshot;
    for (double t = 0; t < seconds - 1e-9; t += kPoll_s) snapshot = Poll();
    return snapshot;
  }

  void* handle_ = nullptr;
  FakeNvml* fake_ = nullptr;
  VirtualClock clock_;
  std::unique_ptr<NvmlSource> source_;
  double power_w_ = 120, used_j_ = 0, since_change_s_ = 0;
  bool counting_ = true;
  unsigned long long counter_end_ = 0;  // 0: 2^64
  double opened_s_ = 0, last_time_s_ = 0, last_energy_j_ = 0;
};

}  // namespace thermoe
