// SPDX-License-Identifier: Apache-2.0
// report and replay: a run's decision log as chart and summary, and whatever else a log may hold.
#include <gmock/gmock.h>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class ReportTest : public CliTest {
 protected:
  // Of a run under every kind of limit, as log.jsonl too.
  std::string Log() {
    static std::string log;  // one run for all tests
    if (log.empty()) {
      const ProcessResult run = Thermoe({"run", "-p", "The sea", "-n", "600", "--ignore-end", "--seed", "1",
                                         "--telemetry", "plant:small", "--power-limit", "1.6", "--temp-limit", "60",
                                         "--latency-target", "30", "--decision-log", Path("log.jsonl")});
      EXPECT_EQ(run.exit_code, 0) << run.err;
      log = ReadAll(Path("log.jsonl"));
    } else {
      WriteAll(Path("log.jsonl"), log);
    }
    return log;
  }

  // Nothing that runs, loads or leads elsewhere, and as many tags closed as opened.
  static void ExpectHarmless(const std::string& text) {
    for (const char* bad : {"<script", "javascript:", "href", "src=", "<image", "<foreignObject", "onload", "url("}) {
      EXPECT_THAT(text, Not(HasSubstr(bad)));
    }
    for (const char c : text) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 || c == '\n') << static_cast<int>(c);
    EXPECT_THAT(text, Not(HasSubstr("nan")));
    EXPECT_THAT(text, Not(HasSubstr("inf")));
    const auto count = [&](const std::string& part) {
      int found = 0;
      for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++found;
      return found;
    };
    EXPECT_EQ(count("<text "), count("</text>"));
    EXPECT_EQ(count("<svg"), 1);
    EXPECT_TRUE(text.ends_with("</svg>\n") || text.ends_with("</html>\n"));
  }
};

TEST_F(ReportTest, DrawsARunAndSaysWhatCameOfIt) {
  Log();
  const Json json = ThermoeJson({"report", Path("log.jsonl"), "--out", Path("run.svg")});
  EXPECT_EQ(json["file"], Path("run.svg"));
  EXPECT_EQ(json["simulated"], true);
  EXPECT_EQ(json["router"], "adaptive");
  EXPECT_EQ(json["cut"], false);
  EXPECT_NEAR(json["mean_w"], 1.6, 0.05);
  EXPECT_EQ(json["power_limit_w"], 1.6);
  EXPECT_LT(json["worst_1s_frac"], 0.06);
  EXPECT_NEAR(json["decoded_tokens"], 600, 10);
  EXPECT_GT(json["loss_nats"], 0);
  EXPECT_LE(json["loss_nats"], 0.02);
  EXPECT_GT(json["pause_frac"], 0.3);
  const double watts = json["tokens_per_s"].get<double>() * json["joules_per_token"].get<double>();
  EXPECT_NEAR(watts, json["mean_w"].get<double>(), 1e-6);
  double time = 0;
  for (const Json& point : json["points"]) time += point["time_frac"].get<double>();
  EXPECT_NEAR(time, 1, 1e-9);
  const std::string svg = ReadAll(Path("run.svg"));
  ExpectHarmless(svg);
  for (const char* part :
       {"adaptive router, plant:small (simulated)", "power, W", "die temperature, C", "decoded tokens per second",
        "operating point", "nats per token", "paused", "multipliers", "latency of decode steps", "stroke-dasharray"}) {
    EXPECT_THAT(svg, HasSubstr(part));
  }
  const ProcessResult text = Thermoe({"report", Path("log.jsonl")});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("limit 1.6 W"));
  EXPECT_THAT(text.out, HasSubstr("log.jsonl.html"));
  const std::string html = ReadAll(Path("log.jsonl.html"));
  ExpectHarmless(html);
  EXPECT_THAT(html, HasSubstr("<th>power</th>"));
  EXPECT_THAT(html, HasSubstr("<svg"));
}

TEST_F(ReportTest, ALogThatWasCutIsDrawnUpToThere) {
  const std::string log = Log();
  WriteAll(Path("cut.jsonl"), log.substr(0, log.size() * 2 / 3));
  const Json json = ThermoeJson({"report", Path("cut.jsonl")});
  EXPECT_EQ(json["cut"], true);
  EXPECT_GT(json["ticks"], 5);
  const std::string first = log.substr(0, log.find('\n') + 1);
  WriteAll(Path("head.jsonl"), first);
  ExpectRefused({"report", Path("head.jsonl")}, {"head.jsonl", "before the first tick"});
  WriteAll(Path("half.jsonl"), first.substr(0, first.size() / 2));
  ExpectRefused({"report", Path("half.jsonl")}, {"half.jsonl: line 1"});
}

TEST_F(ReportTest, Refusals) {
  ExpectRefused({"report", Path("none.jsonl")}, {"none.jsonl", "no such file"});
  ExpectRefused({"report", Path("")}, {"folder"});
  WriteAll(Path("empty.jsonl"), "");
  ExpectRefused({"report", Path("empty.jsonl")}, {"empty.jsonl", "empty"});
  WriteAll(Path("other.jsonl"), "{\"prompt\": \"a\"}\n");
  ExpectRefused({"report", Path("other.jsonl")}, {"other.jsonl: line 1", "decision_log"});
  ExpectRefused({"replay", Path("other.jsonl")}, {"other.jsonl: line 1", "decision_log"});
  const std::string log = Log();
  ExpectRefused({"report", Path("log.jsonl"), "--out", Path("x.png")}, {"--out", ".html or .svg"});
  ExpectRefused({"report", Path("log.jsonl"), "--out", Path("no/such.svg")}, {"no/such.svg", "--out"});
  const auto with = [&](const std::string& from, const std::string& to, const std::vector<std::string>& parts) {
    std::string bad = log;
    const size_t at = bad.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    bad.replace(at, from.size(), to);
    WriteAll(Path("bad.jsonl"), bad);
    ExpectRefused({"report", Path("bad.jsonl")}, parts);
  };
  with("\"decision_log\":1", "\"decision_log\":7", {"line 1", "decision_log must be 1"});
  with("\"lambda_power\":", "\"lambda_power\":\"x\",\"y\":", {"line 2", "decision.lambda_power"});
  with("\"point\":", "\"point\":99999,\"y\":", {"line 2", "decision.point"});
  with("\"power_w\":", "\"power_w\":1e300,\"y\":", {"line 2", "measured.power_w", "1e+06"});
  with("\"time_s\":", "\"time_s\":-1e9,\"y\":", {"line 2", "time_s"});
  with("\"steps\":[[", "\"steps\":[[1],[", {"line 2", "12 or 16"});
}

// Names in a log come from strangers.
TEST_F(ReportTest, TextOfALogIsOnlyText) {
  std::string log = Log();
  const std::string from = "\"model\":\"";
  log.insert(log.find(from) + from.size(), "</text><script>alert(1)</script>\\u0007\\u001b[2J\\\" onload=\\\"x");
  WriteAll(Path("bad.jsonl"), log);
  const ProcessResult result = Thermoe({"report", Path("bad.jsonl"), "--out", Path("bad.svg")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::string svg = ReadAll(Path("bad.svg"));
  EXPECT_THAT(svg, Not(HasSubstr("<script")));
  EXPECT_THAT(svg, Not(HasSubstr("\x1b")));
  EXPECT_THAT(svg, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(svg, Not(HasSubstr("\" onload")));
}

// Any bytes: a chart or one sentence with the line.
TEST_F(ReportTest, HostileBytes) {
  const std::string log = Log();
  const std::string text = log.substr(0, log.find('\n', log.find('\n', log.size() / 8) + 1) + 1);
  uint64_t state = 7;
  const auto random = [&](size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>(state >> 33) % below;
  };
  constexpr const char* kNumbers[] = {"-1",          "1e308", "-1e308", "1e-320", "null", "[]", "99999999999999999999",
                                      "\"\\ud800\"", "{}",    "0"};
  int refused = 0;
  for (int i = 0; i < 60; ++i) {
    std::string bad = text;
    const size_t tail = i % 2 == 0 ? text.find('\n') : 0;  // half of them leave the header alone
    for (size_t n = 1 + random(3); n > 0; --n) {
      const size_t at = tail + random(bad.size() - tail);
      if (random(2) == 0) {
        bad[at] = static_cast<char>(random(256));
      } else if (const size_t number = bad.find_first_of("0123456789", at); number != std::string::npos) {
        bad.replace(number, bad.find_first_not_of("0123456789.e-", number) - number,
                    kNumbers[random(std::size(kNumbers))]);
      }
    }
    WriteAll(Path("bad.jsonl"), bad);
    const ProcessResult result = Thermoe({"report", Path("bad.jsonl"), "--out", Path("bad.svg")});
    ASSERT_TRUE(result.exit_code == 0 || result.exit_code == 2) << result.exit_code << result.err;
    if (result.exit_code == 0) {
      ExpectHarmless(ReadAll(Path("bad.svg")));
      continue;
    }
    ++refused;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.err, HasSubstr("bad.jsonl: line "));
  }
  EXPECT_GT(refused, 10);
}

// Terms of the hardware adapter are drawn where a log has them; other keys that are not known are left alone.
TEST_F(ReportTest, MoreKeys) {
  EXPECT_THAT(Log(), HasSubstr("\"decision\""));
  std::string log = Log();
  for (const std::string from : {"{\"tick\":", "{\"decision_log\":", "\"decision\":{", "\"config\":{"}) {
    const size_t brace = from.find('{');
    const std::string with = from.substr(0, brace + 1) +
                             "\"ttha\":{\"power_loss\":[2,0.1],\"fidelity\":[1,-0.05],\"gain\":0.3}," +
                             from.substr(brace + 1);
    for (size_t at = 0; (at = log.find(from, at)) != std::string::npos; at += with.size())
      log.replace(at, from.size(), with);
  }
  WriteAll(Path("more.jsonl"), log);
  EXPECT_GT(ThermoeJson({"report", Path("more.jsonl"), "--out", Path("more.svg")})["ticks"], 5);
  const std::string svg = ReadAll(Path("more.svg"));
  ExpectHarmless(svg);
  EXPECT_THAT(svg, HasSubstr("terms of the hardware adapter"));
  EXPECT_THAT(svg, HasSubstr(">power_loss<"));
  EXPECT_THAT(svg, Not(HasSubstr(">gain<")));  // no term
}

}  // namespace
}  // namespace thermoe
