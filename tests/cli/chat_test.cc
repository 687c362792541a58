// `ferry chat` at a pseudo-terminal and in a pipe.

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/chat_session.h"
#include "cli/http_call.h"
#include "common/deadline.h"
#include "common/unique_fd.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/loopback_listener.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// `ferry` with a terminal of its own.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments) {
    const std::string program = BinaryBeside("ferry");
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (pid_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) kill(pid_, SIGKILL), waitpid(pid_, nullptr, 0);
    close(terminal_);
  }

  void Type(const std::string& text) { ASSERT_EQ(write(terminal_, text.data(), text.size()), static_cast<ssize_t>(text.size())); }
  // Everything up to `text`, which is taken; what came instead if it does not come within a minute.
  std::string Until(const std::string& text) {
    const Deadline deadline = Deadline::In(absl::Minutes(1));
    while (screen_.find(text) == std::string::npos && !deadline.Passed() && Fill()) {
    }
    const size_t at = screen_.find(text);
    EXPECT_NE(at, std::string::npos) << "no '" << text << "' in: " << screen_;
    const std::string seen = screen_.substr(0, at == std::string::npos ? at : at + text.size());
    screen_.erase(0, seen.size());
    return seen;
  }
  // The exit code once the program has ended.
  int Wait() {
    const Deadline deadline = Deadline::In(absl::Minutes(1));
    while (Fill() && !deadline.Passed()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  // False: the program has closed the terminal.
  bool Fill() {
    pollfd ready = {.fd = terminal_, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, 100) == 0) return true;
    char buffer[4096];
    const ssize_t got = read(terminal_, buffer, sizeof(buffer));
    if (got > 0) screen_.append(buffer, static_cast<size_t>(got));
    return got > 0;
  }

  int terminal_ = -1;
  pid_t pid_ = -1;
  std::string screen_;
};

// A server on loopback that gives the answers in their order, one a connection, and keeps what it was asked.
class CannedServer {
 public:
  explicit CannedServer(std::vector<std::string> answers) : url_("http://" + listener_.address() + "/v1") {
    thread_ = std::thread([this, answers = std::move(answers)] {
      for (const std::string& answer : answers) Serve(answer);
    });
  }
  ~CannedServer() {
    ::shutdown(listener_.fd(), SHUT_RDWR);
    thread_.join();
  }
  const std::string& url() const { return url_; }
  // Valid once the last answer was read.
  const std::vector<std::string>& requests() const { return requests_; }

 private:
  void Serve(const std::string& answer) {
    const UniqueFd connection(::accept(listener_.fd(), nullptr, nullptr));
    if (!connection.valid()) return;
    std::string request;
    char buffer[4096];
    const auto complete = [&] {
      const size_t head = request.find("\r\n\r\n"), length = request.find("Content-Length: ");
      return head != std::string::npos &&
             (length == std::string::npos || request.size() >= head + 4 + std::stoul(request.substr(length + 16)));
    };
    while (!complete()) {
      const ssize_t got = ::recv(connection.get(), buffer, sizeof(buffer), 0);
      if (got <= 0) return;
      request.append(buffer, static_cast<size_t>(got));
    }
    requests_.push_back(request);
    ::send(connection.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
  }

  const LoopbackListener listener_;
  const std::string url_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

std::string Whole(int status, const std::string& body) {
  return absl::StrCat("HTTP/1.1 ", status, " X\r\ncontent-length: ", body.size(), "\r\n\r\n", body);
}
std::string Delta(const nlohmann::json& delta) {
  return "data: " + nlohmann::json{{"choices", {{{"delta", delta}}}}}.dump() + "\n\n";
}
// Cut into chunks that end anywhere.
std::string Stream(const std::string& body) {
  std::string answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (size_t at = 0; at < body.size(); at += 7) {
    const std::string piece = body.substr(at, 7);
    absl::StrAppend(&answer, piece.size(), "\r\n", piece, "\r\n");
  }
  return answer + "0\r\n\r\n";
}
const std::string kModels = Whole(200, R"({"data": [{"id": "canned"}]})");

TEST(HttpServer, ReadsAddressesAsPeopleWriteThem) {
  const auto url = [](const char* text) {
    const absl::StatusOr<HttpServer> server = ParseHttpServer(text);
    return server.ok() ? server->Url() : std::string(server.status().message());
  };
  EXPECT_EQ(url("http://127.0.0.1:8000/v1/"), "http://127.0.0.1:8000");
  EXPECT_EQ(url("https://chat.example/prefix/v1"), "https://chat.example:443/prefix");
  EXPECT_EQ(url("localhost"), "http://localhost:8080");
  EXPECT_EQ(url("[::1]:80"), "http://[::1]:80");
  for (const char* wrong : {"ftp://x", "http://", "http://x:99999", "unix:/tmp/x", "http://x/a b", "http://x/?y"}) {
    EXPECT_THAT(ParseHttpServer(wrong), StatusIs(absl::StatusCode::kInvalidArgument)) << wrong;
  }
}

TEST(Chat, KeepsAConversationAndItsFile) {
  const TestFolder folder;
  Terminal terminal({"chat", "-m", kDemoModel, "--temp", "0", "-n", "8", "--backend", "cpu"});
  terminal.Until("> ");
  terminal.Type("Once upon a time\n");
  EXPECT_THAT(terminal.Until("> "), HasSubstr(" tokens, "));
  terminal.Type("/system Be short.\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("System message: Be short."));
  terminal.Type("/save " + folder.File("talk.json") + "\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("is written"));
  std::ifstream file(folder.File("talk.json"));
  const nlohmann::json talk = nlohmann::json::parse(file, nullptr, false);
  ASSERT_EQ(talk["messages"].size(), 3u) << talk;
  EXPECT_EQ(talk["messages"][0]["content"], "Be short.");
  EXPECT_EQ(talk["messages"][2]["role"], "assistant");
  terminal.Type("/save " + folder.File("talk.json") + "\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("exists already"));
  terminal.Type("/save " + kDemoModel + " --force\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("which is read"));
  terminal.Type("\xe9\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("the user message is not UTF-8"));
  terminal.Type("/frobnicate\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("There is no /frobnicate"));
  terminal.Type("/regen\n");
  EXPECT_THAT(terminal.Until("> "), HasSubstr(" tokens, "));
  terminal.Type("/exit\n");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(Chat, CtrlCStopsTheAnswerAndNotTheProgram) {
  Terminal terminal({"chat", "-m", kDemoModel, "--temp", "0", "--backend", "cpu", "--ignore-eos"});
  terminal.Until("> ");
  terminal.Type("A little dog\n");
  terminal.Until(" and");
  terminal.Type("\x03");
  terminal.Until("[stopped]");
  terminal.Until("> ");
  terminal.Type("\x03");
  terminal.Until("Ctrl-C again or Ctrl-D ends");
  terminal.Type("/clear\n");
  terminal.Until("begins anew");
  terminal.Type("\x03");
  terminal.Until("Ctrl-C again or Ctrl-D ends");
  terminal.Type("\x03");
  EXPECT_EQ(terminal.Wait(), 130) << "twice at the prompt";
}

TEST(Chat, ReasoningIsDimAndAnswersDoNotSteerTheTerminal) {
  const CannedServer server(
      {kModels, Stream(": keep-alive\n\n" + Delta({{"role", "assistant"}, {"content", nullptr}}) +
                       Delta({{"reasoning_content", "hm"}}) + Delta({{"content", "a\x1b[2Jb\n"}}) +
                       "data: {\"choices\": [], \"usage\": {\"completion_tokens\": 3}}\n\ndata: [DONE]\n\n")});
  Terminal terminal({"chat", "--server", server.url(), "--reasoning-effort", "low"});
  EXPECT_THAT(terminal.Until("> "), HasSubstr("canned; /help"));
  terminal.Type("Hi\n");
  const std::string seen = terminal.Until("> ");
  EXPECT_THAT(seen, HasSubstr("\033[2mhm\033[0m\r\n\r\na\\x1b[2Jb"));
  EXPECT_THAT(seen, HasSubstr("[3 tokens]"));
  terminal.Type("\x04");
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_THAT(server.requests().at(1), HasSubstr(R"("reasoning_effort":"low")"));
  EXPECT_THAT(server.requests().at(1), HasSubstr("POST /v1/chat/completions"));
}

TEST(Chat, AnErrorOfTheServerTakesTheMessageBack) {
  const CannedServer server(
      {kModels, Whole(400, R"({"error": {"message": "too long"}})"), Stream(Delta({{"content", "yes"}}) + "data: [DONE]\n\n")});
  Terminal terminal({"chat", "--server", server.url()});
  terminal.Until("> ");
  terminal.Type("first\n");
  EXPECT_THAT(terminal.Until("\n> "), HasSubstr("error: too long"));
  terminal.Type("second\n");
  EXPECT_THAT(terminal.Until("> "), HasSubstr("yes"));
  terminal.Type("/exit\n");
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_THAT(server.requests().at(2), Not(HasSubstr("first")));
}

TEST(Chat, APipeIsOneMessageAndItsAnswerAlone) {
  const CannedServer server(
      {kModels, Stream(Delta({{"reasoning_content", "hm"}}) + Delta({{"content", "yes"}}) + "data: [DONE]\n\n")});
  const Output output = Ferry("chat --server " + server.url() + " --system Short. --temp 0.5 -n 9", "printf 'one\\ntwo\\n' |");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(output.out, "yes\n");
  const std::string body = server.requests().at(1).substr(server.requests().at(1).find("\r\n\r\n"));
  const nlohmann::json json = nlohmann::json::parse(body);
  EXPECT_EQ(json["messages"].size(), 2u);
  EXPECT_EQ(json["messages"][1]["content"], "one\ntwo\n");
  EXPECT_EQ(json["temperature"], 0.5);
  EXPECT_EQ(json["max_tokens"], 9);
}

TEST(Chat, SaysWhatIsWrongWithAServer) {
  const auto error = [](const std::string& answer) {
    const CannedServer server({answer});
    const Output output = Ferry("chat --server " + server.url(), "echo hi |");
    EXPECT_EQ(output.exit_code, 1);
    EXPECT_EQ(output.out, "");
    return output.err;
  };
  EXPECT_THAT(error("\x01\x02 no HTTP\r\n"), HasSubstr("does not speak HTTP"));
  EXPECT_THAT(error(Whole(401, R"({"error": {"message": "a key is missing"}})")),
              HasSubstr("a key is missing; set FERRY_API_KEY"));
  EXPECT_THAT(error("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"), HasSubstr("within its answer"));
  EXPECT_THAT(error("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"), HasSubstr("as it should"));
  EXPECT_EQ(Ferry("chat", "echo hi |").exit_code, 2);
  EXPECT_EQ(Ferry("chat --server ftp://x", "echo hi |").exit_code, 2);
}

TEST(Conversation, LoadsWhatItHasWrittenAndNothingElse) {
  Conversation conversation;
  conversation.SetSystem("Be short.");
  conversation.Add("user", "Hi");
  const std::string text = nlohmann::json{{"messages", conversation.Messages()}}.dump();
  Conversation loaded;
  ASSERT_OK(loaded.Load(text));
  EXPECT_EQ(loaded.Messages(), conversation.Messages());
  for (const char* wrong : {"", "[]", "{}", R"({"messages": 5})", R"({"messages": [5]})", R"({"messages": [{"role": "user"}]})",
                            R"({"messages": [{"role": "user", "content": ["x"]}]})"}) {
    EXPECT_THAT(loaded.Load(wrong), StatusIs(absl::StatusCode::kInvalidArgument)) << wrong;
  }
  EXPECT_EQ(loaded.Messages(), conversation.Messages());
}

}  // namespace
}  // namespace ferry
