// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/linux_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/random.h"
#include "control/telemetry/small_file.h"
#include "control/telemetry_testing.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

constexpr char kRapl[] = "sys/class/powercap/intel-rapl:";

class LinuxSourceTest : public ::testing::Test {
 protected:
  void AddDomain(const std::string& number, const std::string& name, int64_t energy_uj,
                 int64_t range_uj = 262143328850) {
    folder_.Write(kRapl + number + "/name", name + "\n");
    folder_.Write(kRapl + number + "/energy_uj", std::to_string(energy_uj) + "\n");
    folder_.Write(kRapl + number + "/max_energy_range_uj", std::to_string(range_uj) + "\n");
  }
  void SetEnergy(const std::string& number, int64_t energy_uj) {
    folder_.Write(kRapl + number + "/energy_uj", std::to_string(energy_uj) + "\n");
  }
  // Ticks of 10 ms: user and idle.
  void SetStat(int64_t user, int64_t idle) {
    folder_.Write("proc/stat",
                  "cpu  " + std::to_string(user) + " 0 0 " + std::to_string(idle) + " 0 0 0 0 0 0\ncpu0 1 2\n");
  }
  void Open() { source_ = std::make_unique<LinuxSource>(folder_.path(), clock_.clock()); }
  Snapshot Read(double wait_s = 0.025) {
    clock_.now_s += wait_s;
    const Snapshot snapshot = source_->Read();
    EXPECT_TRUE(Sane(snapshot));
    return snapshot;
  }
  const SensorReport* Report(const std::string& name) {
    reports_ = source_->Report();
    for (const SensorReport& report : reports_) {
      EXPECT_EQ(report.found, !report.value.empty());
      EXPECT_NE(report.found, !report.reason.empty());
      if (report.name == name) return &report;
    }
    ADD_FAILURE() << "no report of " << name;
    return nullptr;
  }

  TempFolder folder_;
  VirtualClock clock_;
  std::unique_ptr<LinuxSource> source_;
  std::vector<SensorReport> reports_;
};

TEST_F(LinuxSourceTest, SumsPackagesAndDramOnly) {
  AddDomain("0", "package-0", 1'000'000);
  AddDomain("1", "package-1", 5'000'000);
  AddDomain("0:0", "core", 1);
  AddDomain("0:1", "dram", 7'000'000);
  AddDomain("2", "psys", 1);
  folder_.Write("sys/class/powercap/intel-rapl-mmio:0/name", "package-0\n");
  folder_.Write("sys/class/powercap/intel-rapl-mmio:0/energy_uj", "123\n");
  folder_.Write(std::string(kRapl) + "0/constraint_0_power_limit_uw", "125000000\n");
  folder_.Write(std::string(kRapl) + "1/constraint_0_power_limit_uw", "95000000\n");
  Open();
  Snapshot snapshot = Read();
  EXPECT_FALSE(snapshot.power_w.has_value());
  for (int i = 1; i <= 20; ++i) {  // 40 + 20 + 4 W
    SetEnergy("0", 1'000'000 + i * 1'000'000);
    SetEnergy("1", 5'000'000 + i * 500'000);
    SetEnergy("0:1", 7'000'000 + i * 100'000);
    SetEnergy("0:0", i * 900'000);
    SetEnergy("2", i * 2'000'000);
    snapshot = Read();
  }
  EXPECT_NEAR(snapshot.power_w.value(), 64, 1e-3);
  EXPECT_NEAR(snapshot.energy_j.value(), 20 * 1.6, 1e-6);
  EXPECT_EQ(snapshot.power_limit_w, 220);
  EXPECT_EQ(Report("RAPL package-0")->value, "40 W");
}

TEST_F(LinuxSourceTest, RaplWraps) {
  AddDomain("0", "package-0", 999'000'000, 1'000'000'000);
  Open();
  Snapshot snapshot = Read();
  int64_t energy_uj = 999'000'000;
  for (int i = 0; i < 80; ++i) {
    energy_uj = (energy_uj + 2'500'000) % 1'000'000'000;
    SetEnergy("0", energy_uj);
    snapshot = Read();
    if (i > 8) {
      EXPECT_NEAR(snapshot.power_w.value(), 100, 1e-3);
    }
  }
  EXPECT_NEAR(snapshot.energy_j.value(), 200, 1e-6);
  SetEnergy("0", 5);  // a reset in the middle of the range is no wrap of 800 J
  EXPECT_NEAR(Read().energy_j.value(), 200, 1e-6);
}

TEST_F(LinuxSourceTest, RootOnlyFilesSaySo) {
  AddDomain("0", "package-0", 1'000'000);
  const std::string file = folder_.path() + "/" + kRapl + "0/energy_uj";
  ASSERT_EQ(::chmod(file.c_str(), 0), 0);
  const bool root = ::geteuid() == 0;
  if (root) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  Open();
  const Snapshot snapshot = Read();
  const SensorReport* report = Report("RAPL package-0");
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  EXPECT_FALSE(snapshot.power_w.has_value());
  EXPECT_FALSE(snapshot.energy_j.has_value());
  ASSERT_NE(report, nullptr);
  EXPECT_THAT(report->reason, HasSubstr("root only"));
  EXPECT_THAT(report->reason, HasSubstr("sudo chmod a+r " + file));
}

TEST_F(LinuxSourceTest, ADomainThatDisappearsMakesTheSumUnknown) {
  AddDomain("0", "package-0", 1'000'000);
  AddDomain("1", "package-1", 1'000'000);
  Open();
  EXPECT_TRUE(Read().energy_j.has_value());
  folder_.Remove(std::string(kRapl) + "1");
  EXPECT_FALSE(Read().energy_j.has_value());
  EXPECT_FALSE(Read(2).energy_j.has_value());  // and after the folders were listed again
  AddDomain("1", "package-1", 2'000'000);
  EXPECT_EQ(Read().energy_j, 1);
}

TEST_F(LinuxSourceTest, ARestingCounterIsStaleWhileWorkRuns) {
  AddDomain("0", "package-0", 1'000'000);
  Open();
  Read();
  int64_t energy_uj = 1'000'000;
  for (int i = 0; i < 10; ++i) {
    SetEnergy("0", energy_uj += 1'000'000);
    Read();
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Read().state, SourceState::kOk);  // nobody says that work runs
  SetEnergy("0", energy_uj += 1'000'000);
  source_->SetWorking(true);
  EXPECT_EQ(Read().state, SourceState::kOk);
  Snapshot snapshot;
  for (double t = 0; t < 0.3 - 1e-9; t += 0.025) snapshot = Read();
  EXPECT_EQ(snapshot.state, SourceState::kStale);
  EXPECT_FALSE(snapshot.power_w.has_value());
  EXPECT_FALSE(snapshot.energy_j.has_value());
}

TEST_F(LinuxSourceTest, TemperaturesOfHwmon) {
  folder_.Write("sys/class/hwmon/hwmon0/name", "nvme\n");
  folder_.Write("sys/class/hwmon/hwmon0/temp1_input", "99000\n");
  folder_.Write("sys/class/hwmon/hwmon1/name", "coretemp\n");
  folder_.Write("sys/class/hwmon/hwmon1/temp1_input", "45000\n");
  folder_.Write("sys/class/hwmon/hwmon1/temp1_label", "Package id 0\n");
  folder_.Write("sys/class/hwmon/hwmon1/temp1_crit", "100000\n");
  folder_.Write("sys/class/hwmon/hwmon1/temp2_input", "47500\n");
  folder_.Write("sys/class/hwmon/hwmon1/temp2_crit", "95000\n");
  folder_.Write("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
  folder_.Write("sys/class/thermal/thermal_zone0/temp", "90000\n");
  Open();
  const Snapshot snapshot = Read();
  EXPECT_EQ(snapshot.temp_c, 47.5);
  EXPECT_EQ(snapshot.temp_slowdown_c, 95);
  EXPECT_EQ(Report("coretemp Package id 0")->value, "45.0 C");
  folder_.Write("sys/class/hwmon/hwmon1/temp2_input", "0\n");
  EXPECT_EQ(Read().temp_c, 45);
  folder_.Remove("sys/class/hwmon/hwmon1/temp1_input");
  EXPECT_FALSE(Read().temp_c.has_value());
}

TEST_F(LinuxSourceTest, ThermalZonesWhereThereIsNoHwmon) {
  folder_.Write("sys/class/thermal/thermal_zone0/type", "acpitz\n");
  folder_.Write("sys/class/thermal/thermal_zone0/temp", "99000\n");
  folder_.Write("sys/class/thermal/thermal_zone1/type", "cpu-thermal\n");
  folder_.Write("sys/class/thermal/thermal_zone1/temp", "51000\n");
  folder_.Write("sys/class/thermal/thermal_zone1/trip_point_0_type", "passive\n");
  folder_.Write("sys/class/thermal/thermal_zone1/trip_point_0_temp", "85000\n");
  folder_.Write("sys/class/thermal/thermal_zone1/trip_point_1_type", "critical\n");
  folder_.Write("sys/class/thermal/thermal_zone1/trip_point_1_temp", "105000\n");
  Open();
  const Snapshot snapshot = Read();
  EXPECT_EQ(snapshot.temp_c, 51);
  EXPECT_EQ(snapshot.temp_slowdown_c, 85);
  EXPECT_EQ(snapshot.temp_shutdown_c, 105);
}

TEST_F(LinuxSourceTest, ClocksOfCpufreq) {
  for (int cpu = 0; cpu < 4; ++cpu) {
    const std::string base = "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/";
    folder_.Write(base + "scaling_cur_freq", std::to_string(1'000'000 * (cpu + 1)) + "\n");
    folder_.Write(base + "cpuinfo_max_freq", "4500000\n");
  }
  folder_.Write("sys/devices/system/cpu/cpuidle/current_driver", "none\n");
  Open();
  const Snapshot snapshot = Read();
  EXPECT_EQ(snapshot.clock_mhz, 2500);
  EXPECT_EQ(snapshot.clock_limit_mhz, 4500);
  folder_.Write("sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq", "<unknown>\n");
  EXPECT_EQ(Read().clock_mhz, 2000);
}

TEST_F(LinuxSourceTest, UtilisationOfProcStat) {
  SetStat(1000, 9000);
  Open();
  EXPECT_EQ(Read().state, SourceState::kOk);
  SetStat(1030, 9010);
  EXPECT_FALSE(Read(0.05).utilisation_frac.has_value());
  EXPECT_EQ(Read(0.05).utilisation_frac, 0.75);
  SetStat(1030, 9110);
  EXPECT_EQ(Read(0.1).utilisation_frac, 0);
  SetStat(900, 9110);  // backwards
  EXPECT_FALSE(Read(0.1).utilisation_frac.has_value());
  folder_.Remove("proc/stat");
  EXPECT_EQ(Read(0.1).state, SourceState::kLost);
  SetStat(900, 9110);
  EXPECT_EQ(Read().state, SourceState::kOk);
}

TEST_F(LinuxSourceTest, AsksToBeReadOftenOnlyForACounter) {
  SetStat(1000, 9000);
  Open();
  Read();
  EXPECT_GT(source_->least_period_s(), 0.05);
  EXPECT_LT(source_->least_period_s(), kStaleAfter_s / 2);
  AddDomain("0", "package-0", 5);
  Read(1.1);
  EXPECT_EQ(source_->least_period_s(), 0);
}

TEST_F(LinuxSourceTest, NothingThereIsLostAndSaysWhy) {
  Open();
  EXPECT_EQ(Read().state, SourceState::kLost);
  for (const char* name : {"RAPL", "CPU temperature", "cpufreq clocks", "/proc/stat utilisation"}) {
    EXPECT_FALSE(Report(name)->found);
  }
  AddDomain("0", "package-0", 5);  // a module loaded later
  EXPECT_EQ(Read(1.1).state, SourceState::kOk);
}

TEST_F(LinuxSourceTest, HostileFilesAreUnknown) {
  const std::vector<std::string> files = {std::string(kRapl) + "0/energy_uj",
                                          std::string(kRapl) + "0/max_energy_range_uj",
                                          std::string(kRapl) + "0/constraint_0_power_limit_uw",
                                          "sys/class/hwmon/hwmon1/temp1_input",
                                          "sys/class/hwmon/hwmon1/temp1_crit",
                                          "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
                                          "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
                                          "proc/stat"};
  const std::vector<std::string> contents = {"",
                                             "\n",
                                             "text",
                                             "-5",
                                             "-9223372036854775808",
                                             "9223372036854775807",
                                             "99999999999999999999999999",
                                             "0",
                                             "1e9",
                                             " 12",
                                             "0x10",
                                             "+7",
                                             "12 34",
                                             std::string(10'000, '9'),
                                             std::string("12\0", 3),
                                             "cpu  -1 2 3 4 5 6 7 8",
                                             "cpu  1 2 3",
                                             "cpu  9223372036854775807 9223372036854775807 1 1 1 1 1 1",
                                             "cpu 1 2 3 4x 5 6 7 8"};
  const auto reset = [&] {
    AddDomain("0", "package-0", 1'000'000);
    folder_.Write("sys/class/hwmon/hwmon1/name", "k10temp\n");
    for (const std::string& file : files) folder_.Write(file, "50000\n");
    SetStat(1, 1);
  };
  for (const std::string& file : files) {
    for (const std::string& content : contents) {
      SCOPED_TRACE(file + ": " + content.substr(0, 30));
      reset();
      Open();
      Read();
      folder_.Write(file, content);
      for (int i = 0; i < 5; ++i) {
        const Snapshot snapshot = Read(0.3);
        if (file == files[0]) {
          EXPECT_FALSE(snapshot.power_w.has_value());
        }
        if (file == files[3]) {
          EXPECT_FALSE(snapshot.temp_c.has_value());
        }
        if (file == files[5]) {
          EXPECT_FALSE(snapshot.clock_mhz.has_value());
        }
        if (file == files[7]) {
          EXPECT_FALSE(snapshot.utilisation_frac.has_value());
        }
      }
      source_->Report();
    }
  }
}

TEST_F(LinuxSourceTest, RandomFilesDoNoHarm) {
  const std::vector<std::string> files = {
      std::string(kRapl) + "0/energy_uj", std::string(kRapl) + "0/max_energy_range_uj",
      std::string(kRapl) + "0/name",      "sys/class/hwmon/hwmon1/temp1_input",
      "sys/class/hwmon/hwmon1/name",      "proc/stat"};
  AddDomain("0", "package-0", 1'000'000);
  folder_.Write("sys/class/hwmon/hwmon1/name", "k10temp\n");
  SetStat(1, 1);
  Random random(5);
  Open();
  double energy_j = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::string& file = files[random.Below(files.size())];
    std::string content;
    if (random.Below(2) == 0) {
      content = file == "proc/stat" ? "cpu  " : "";
      content += std::to_string(static_cast<int64_t>(random.Next() >> random.Below(64)));
    } else {
      for (uint64_t j = random.Below(20); j > 0; --j) content += static_cast<char>(random.Next());
    }
    folder_.Write(file, content);
    if (random.Below(10) == 0) folder_.Remove(file);
    const Snapshot snapshot = Read(random.Uniform());
    if (snapshot.energy_j) {
      EXPECT_GE(*snapshot.energy_j, energy_j);
      energy_j = *snapshot.energy_j;
    }
  }
}

TEST_F(LinuxSourceTest, PipesAndFoldersInPlaceOfFilesDoNotBlock) {
  AddDomain("0", "package-0", 1'000'000);
  const std::string file = std::string(kRapl) + "0/energy_uj";
  folder_.Remove(file);
  ASSERT_EQ(::mkfifo((folder_.path() + "/" + file).c_str(), 0600), 0);
  ASSERT_EQ(::mkdir((folder_.path() + "/proc").c_str(), 0700), 0);
  ASSERT_EQ(::mkdir((folder_.path() + "/proc/stat").c_str(), 0700), 0);
  Open();
  EXPECT_FALSE(Read().energy_j.has_value());
}

TEST(LinuxSource, ReadsThisMachine) {
  LinuxSource source;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Sane(source.Read()));
  EXPECT_FALSE(source.Report().empty());
}

TEST(SmallFile, Integers) {
  EXPECT_EQ(ParseInteger("42"), 42);
  EXPECT_EQ(ParseInteger("-42"), -42);
  for (const char* text : {"", " 1", "1 ", "+1", "0x1", "1.5", "9223372036854775808", "-", "a"}) {
    EXPECT_FALSE(ParseInteger(text).has_value()) << text;
  }
  EXPECT_FALSE(ReadInteger("/nowhere").has_value());
}

}  // namespace
}  // namespace thermoe
