// SPDX-License-Identifier: Apache-2.0
// What a user can get wrong: exit code 2 and one sentence with file, field and remedy.
#include <gmock/gmock.h>

#include "cli_test_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

class BadInputTest : public CliTest {
 protected:
  // The tiny GGUF with the first `from` replaced by `to`, of the same length.
  std::string PatchedModel(const std::string& from, const std::string& to) {
    std::string bytes = ReadAll(TinyModel());
    const size_t at = bytes.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    EXPECT_EQ(from.size(), to.size());
    bytes.replace(at, from.size(), to);
    WriteAll(Path("patched.gguf"), bytes);
    return Path("patched.gguf");
  }
};

TEST_F(BadInputTest, Usage) {
  ExpectRefused({}, {"no command", "--help"});
  ExpectRefused({"generate"}, {"'generate' is not a command"});
  ExpectRefused({"run", "--top-pp", "1"}, {"unknown flag '--top-pp'", "--top-p'", "thermoe run --help"});
  ExpectRefused({"run", "--temperature", "1"}, {"--temp'"});
  ExpectRefused({"run", "a", "b"}, {"unexpected argument 'b'"});
  ExpectRefused({"run", "-p"}, {"--prompt needs a value"});
  ExpectRefused({"eval", TinyModel()}, {"TEXT is required"});
}

TEST_F(BadInputTest, NumbersOutOfRangeNameTheFlag) {
  const std::vector<std::pair<const char*, const char*>> wrong = {
      {"--top-p", "0"},        {"--top-p", "1.5"},       {"--top-p", "nan"}, {"--min-p", "2"},
      {"--temp", "-1"},        {"--temp", "x"},          {"--top-k", "1.5"}, {"-n", "-1"},
      {"--seed", "1e30"},      {"--threads", "0"},       {"--ctx", "0"},     {"--k0", "0"},
      {"--drop-below", "1.1"}, {"--repeat-penalty", "0"}};
  for (const auto& [flag, value] : wrong) {
    const std::string name = std::string(flag) == "-n" ? "--tokens" : flag;
    ExpectRefused({"run", "-p", "x", flag, value}, {name, std::string("'") + value + "'"});
  }
  ExpectRefused({"run", "-p", "x", "-n", "1e30"}, {"at most 2,147,483,647"});
  ExpectRefused({"bench", "--prefill", "16,x"}, {"--prefill", "'x'"});
  ExpectRefused({"run", "-p", "x", "--experts", "tiny"}, {"--experts", "native, nested"});
}

TEST_F(BadInputTest, ModelFiles) {
  ExpectRefused({"run", Path("missing.gguf"), "-p", "x"}, {Path("missing.gguf"), "no such file"});
  ExpectRefused({"run", "Once upon a time"}, {"no such file", "text goes after -p"});
  WriteAll(Path("text.gguf"), "this is no model");
  ExpectRefused({"inspect", Path("text.gguf")}, {"text.gguf"});
  WriteAll(Path("empty.gguf"), "");
  ExpectRefused({"inspect", Path("empty.gguf")}, {"empty.gguf"});
  const std::string bytes = ReadAll(TinyModel());
  for (const size_t length : {size_t{20}, bytes.size() / 4, bytes.size() - 1000}) {
    WriteAll(Path("cut.gguf"), bytes.substr(0, length));
    ExpectRefused({"inspect", Path("cut.gguf")}, {"cut.gguf"});
  }
  std::filesystem::create_directory(Path("folder"));
  ExpectRefused({"run", Path("folder"), "-p", "x"}, {"folder", "config.json"});
}

TEST_F(BadInputTest, UnknownArchitectureAndType) {
  ExpectRefused({"inspect", PatchedModel("qwen3moe", "qwen9moe")}, {"patched.gguf", "qwen9moe"});
  // A tensor's record: name, dimensions, type, offset; the type of this one becomes 99.
  const std::string name = "blk.0.attn_q.weight";
  std::string bytes = ReadAll(TinyModel());
  const size_t type_at = bytes.find(name) + name.size() + 4 + 2 * 8;
  bytes[type_at] = 99;
  WriteAll(Path("type.gguf"), bytes);
  ExpectRefused({"inspect", Path("type.gguf")}, {"type.gguf", name, "99"});
}

TEST_F(BadInputTest, WrongTensorShape) {
  const std::string name = "blk.0.attn_q.weight";
  std::string bytes = ReadAll(TinyModel());
  const size_t rows_at = bytes.find(name) + name.size() + 4 + 8;
  bytes[rows_at] = 64;
  WriteAll(Path("shape.gguf"), bytes);
  ExpectRefused({"inspect", Path("shape.gguf")}, {"shape.gguf", name});
}

TEST_F(BadInputTest, Prompts) {
  ExpectRefused({"run", TinyModel(), "-p", ""}, {"prompt is empty"});
  ExpectRefused({"run", TinyModel()}, {"standard input", "prompt is empty"});
  ExpectRefused({"run", TinyModel(), "-p", "ab\xff"}, {"invalid UTF-8 at byte 2", "0xff"});
  ExpectRefused({"run", TinyModel()}, {"standard input", "invalid UTF-8 at byte 0"}, "\xc3");
  ExpectRefused({"run", TinyModel(), "-f", Path("none.txt")}, {"none.txt", "no such file"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "-f", "y"}, {"-p, -f"});
  std::string text;
  for (int i = 0; i < 600; ++i) text += "word ";
  ExpectRefused({"run", TinyModel(), "-p", text}, {"the context has room for 512", "shorten"});
  ExpectRefused({"run", TinyModel(), "-p", text, "--ctx", "64"}, {"the context has room for 64", "--ctx", "512"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--ctx", "4096"}, {"--ctx 4096", "512"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--chat-template", "nonsense"},
                {"--chat-template", "nonsense", "chatml"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--system", "be brief"}, {"--system", "--chat"});
}

TEST_F(BadInputTest, PromptFilesNameTheLine) {
  const auto refused = [&](const std::string& lines, const std::vector<std::string>& parts) {
    WriteAll(Path("p.jsonl"), lines);
    ExpectRefused({"run", TinyModel(), "--prompts", Path("p.jsonl")}, parts);
  };
  refused("", {"p.jsonl", "no prompts"});
  refused("{\"prompt\": \"a\"}\n\n{\"prompt\": }\n", {"p.jsonl line 3", "JSON"});
  refused("{\"text\": \"a\"}\n", {"line 1", "\"prompt\""});
  refused("{\"prompt\": \"a\", \"colour\": 1}\n", {"line 1", "\"colour\""});
  refused("{\"prompt\": \"a\", \"top_p\": 7}\n", {"line 1", "\"top_p\"", "at most 1"});
  refused("{\"prompt\": \"a\", \"n\": \"many\"}\n", {"line 1", "\"n\""});
  refused("{\"prompt\": \"a\"}\n{\"prompt\": \"\"}\n", {"line 2", "empty"});
}

TEST_F(BadInputTest, Steering) {
  ExpectRefused({"run", TinyModel(), "-p", "x", "--full-slots", "1"}, {"--full-slots", "--experts nested"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--plane-cap", "f"}, {"--plane-cap", "--experts nested"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--k-max", "4"}, {"--k-max", "3"});
  const auto refused = [&](const std::string& flag, const std::string& text, const std::vector<std::string>& parts) {
    WriteAll(Path("s.json"), text);
    ExpectRefused({"run", TinyModel(), "-p", "x", "--experts", "nested", flag, Path("s.json")}, parts);
  };
  const std::string row = "[0,0,0,0,0,0,0,0]";
  refused("--expert-bias", "{", {"s.json", "JSON"});
  refused("--expert-bias", "[]", {"s.json", "layers"});
  refused("--expert-bias", "{\"layers\": [null, null]}", {"schema_version"});
  refused("--expert-bias", "{\"schema_version\": 1, \"layers\": [null]}", {"1 entries", "2 MoE layers"});
  refused("--expert-bias", "{\"schema_version\": 1, \"layers\": [null, [1, 2]]}", {"layers[1]", "8 values"});
  refused("--expert-bias", "{\"schema_version\": 1, \"layers\": [" + row + ", [0,0,0,\"x\",0,0,0,0]]}",
          {"layers[1][3]", "\"x\""});
  refused("--plane-cap", "{\"schema_version\": 1, \"layers\": [null, [1,1,1,1,1,1,1,3]]}",
          {"layers[1][7]", "1 (hi", "is 3"});
  ExpectRefused({"run", TinyModel(), "-p", "x", "--expert-bias", Path("none.json")}, {"none.json", "no such file"});
}

TEST_F(BadInputTest, Evaluation) {
  const std::string text = Fixture("texts/harbour.txt");
  ExpectRefused({"eval", TinyModel(), Path("none.txt")}, {"none.txt", "no such file"});
  ExpectRefused({"eval", TinyModel(), text, "--window", "4096"}, {"--window 4096", "512"});
  ExpectRefused({"eval", TinyModel(), text, "--window", "32", "--stride", "33"}, {"--stride 33", "--window 32"});
  ExpectRefused({"eval", TinyModel(), text, "--k0", "2"}, {"--k0", "--batch"});
  ExpectRefused({"eval", TinyModel(), text, "--documents", "split", "--window", "512"}, {"no document", "--window"});
  ExpectRefused({"eval", TinyModel(), text, "--documents", "split", "--stride", "3"}, {"--stride", "join"});
  WriteAll(Path("bad.txt"), std::string("fine\n") + "\xf0\x28");
  ExpectRefused({"eval", TinyModel(), Path("bad.txt")}, {"bad.txt", "invalid UTF-8 at byte 5"});
  WriteAll(Path("empty.txt"), "");
  ExpectRefused({"eval", TinyModel(), Path("empty.txt")}, {"empty.txt", "empty"});
}

TEST_F(BadInputTest, Synth) {
  ExpectRefused({"synth", "--arch", "gpt9", Path("x.gguf")}, {"--arch", "olmoe, qwen3moe, mixtral, qwen2moe"});
  WriteAll(Path("there.gguf"), "precious");
  ExpectRefused({"synth", "--arch", "olmoe", "--layers", "1", Path("there.gguf")}, {"there.gguf", "--force"});
  EXPECT_EQ(ReadAll(Path("there.gguf")), "precious");
  ExpectRefused({"synth", "--arch", "olmoe", Path("no/such/folder.gguf")}, {"folder"});
}

TEST_F(BadInputTest, ErrorsAreJsonWithJson) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"run", Path("missing.gguf"), "-p", "x", "--json"}, {"run", "--json", "--nonsense"}}) {
    const ProcessResult result = Thermoe(arguments);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    const Json json = Json::parse(result.err, nullptr, false);
    ASSERT_TRUE(json.is_object()) << result.err;
    EXPECT_EQ(json["schema_version"], 1);
    EXPECT_EQ(json["error"]["code"], arguments.back() == "--json" ? "not_found" : "invalid_argument");
    EXPECT_FALSE(json["error"]["message"].get<std::string>().empty());
  }
}

TEST_F(BadInputTest, StandardErrorMayBeFullOrClosed) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP();
  const std::string run = std::string(THERMOE_APP) + " run " + TinyModel() + " -p x -n 3 --seed 1";
  for (const char* where : {" 2> /dev/full", " 2>&-"}) {
    EXPECT_EQ(WEXITSTATUS(std::system((run + where + " > " + Path("out")).c_str())), 0) << where;
    EXPECT_FALSE(ReadAll(Path("out")).empty());
    EXPECT_EQ(WEXITSTATUS(std::system((std::string(THERMOE_APP) + " run --nonsense" + where).c_str())), 2) << where;
  }
  // With standard output closed a file must not take its place.
  EXPECT_EQ(WEXITSTATUS(std::system((std::string(THERMOE_APP) + " record --telemetry linux --seconds 0.1 --out " + Path("t.csv") + " >&- 2> /dev/null").c_str())), 0);
  EXPECT_EQ(ReadAll(Path("t.csv")).find("rows of linux"), std::string::npos);
}

TEST_F(BadInputTest, FullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP();
  for (const std::string& arguments :
       {std::string("--help"), "inspect " + TinyModel(), "run " + TinyModel() + " -p x -n 400 --ignore-end",
        "run " + TinyModel() + " -p x -n 4 --json"}) {
    const std::string command = std::string(THERMOE_APP) + " " + arguments + " > /dev/full 2> " + Path("err");
    EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1) << arguments;
    const std::string err = ReadAll(Path("err"));
    EXPECT_THAT(err, HasSubstr("cannot write to standard output: No space left on device")) << arguments;
    EXPECT_EQ(err.find("generated"), std::string::npos) << "no report after a failed write: " << err;
  }
}

}  // namespace
}  // namespace thermoe
