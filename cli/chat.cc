// `ferry chat`: a conversation at the terminal, over the HTTP of a server that runs or of one that is started for it.

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "cli/chat_session.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/late_word.h"
#include "cli/prompt.h"
#include "cli/sampling_options.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/number.h"
#include "common/output_file.h"
#include "common/program.h"
#include "common/small_file.h"
#include "common/temporary_folder.h"

namespace ferry {
namespace {

constexpr absl::Duration kGatewayPatience = absl::Seconds(30);  // for one that starts, or starts again
constexpr size_t kMaxConversationBytes = size_t{16} << 20;
constexpr char kHelp[] =
    "  /help           this list\n"
    "  /clear          begin anew; the system message stays\n"
    "  /system [TEXT]  set the system message; without TEXT, show it\n"
    "  /effort [WORD]  low, medium or high, for models that reason; without WORD, the model's own\n"
    "  /regen          answer the last message again\n"
    "  /save FILE [--force]  write the conversation as JSON; with --force in place of a file that is there\n"
    "  /load FILE      go on with one that was written\n"
    "  /exit           end; Ctrl-D does, too\n"
    "A line that ends with \\ goes on in the next one. //x sends /x. Ctrl-C stops the answer.\n";

struct ChatOptions {
  ModelOptions model;
  SamplingOptions sampling;
  std::string server, template_file, effort;
  std::optional<std::string> system;
};

// Standard output as a person at a terminal sees it, or as another program reads it.
class Screen {
 public:
  Screen() : terminal_(isatty(STDOUT_FILENO) != 0), asks_(isatty(STDIN_FILENO) != 0 && terminal_) {}

  bool asks() const { return asks_; }

  // Reasoning is dim; another program gets answers alone.
  void Reason(const std::string& text) {
    if (!terminal_) return;
    if (!std::exchange(dim_, true)) Put("\033[2m");
    Put(Shown(text));
  }
  void Answer(const std::string& text) {
    if (std::exchange(dim_, false)) Put("\033[0m\n\n");
    Put(terminal_ ? Shown(text) : text);
  }
  // The answer is over, and `remark` says how; empty: nothing to say.
  void End(const std::string& remark) {
    if (std::exchange(dim_, false)) Put("\033[0m");
    Put("\n");
    if (!asks_) return;
    if (!remark.empty()) Put("\033[2m" + remark + "\033[0m\n");
    Put("\n");
  }
  void Say(const std::string& text) { Put(text); }

  // Text of a model, or of a file, does not steer the terminal.
  static std::string Shown(const std::string& text) {
    std::string shown;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find_first_of("\n\t", begin), text.size());
      shown += Escaped(std::string_view(text).substr(begin, end - begin), text.size());
      if (end < text.size()) shown += text[end];
      begin = end + 1;
    }
    return shown;
  }

 private:
  static void Put(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  const bool terminal_, asks_;
  bool dim_ = false;
};

std::string Remark(const ChatAnswer& answer) {
  if (answer.stopped) return "[stopped]";
  std::string remark;
  if (answer.tokens > 0) remark = absl::StrFormat("[%d tokens", answer.tokens);
  if (answer.tokens > 0 && answer.per_second > 0) absl::StrAppendFormat(&remark, ", %.1f a second", answer.per_second);
  if (answer.tokens > 0) remark += "]";
  if (answer.finish == "length") remark += " [the limit of tokens ended it]";
  if (answer.finish == "tool_calls") remark += " [the model called a tool, and there are none here]";
  return remark;
}

// A message that may go on over several lines; false: there is no more input.
bool ReadMessage(const Screen& screen, std::string* message) {
  message->clear();
  if (screen.asks()) std::fputs("> ", stdout), std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const bool goes_on = !line.empty() && line.back() == '\\';
    if (goes_on) line.back() = '\n';
    *message += line;
    if (!goes_on) return true;
    if (screen.asks()) std::fputs(". ", stdout), std::fflush(stdout);
  }
  return !message->empty();
}

class Chat {
 public:
  // `inputs`: files that this command and its server read, which /save does not replace.
  Chat(ChatSession& session, InterruptHandler& interrupt, std::string system, std::vector<std::string> inputs)
      : session_(session), interrupt_(interrupt), inputs_(std::move(inputs)) {
    conversation_.SetSystem(std::move(system));
  }

  // All of standard input is one message.
  absl::Status AnswerInput() {
    ASSIGN_OR_RETURN(const std::string message, ReadAll("-"));
    if (absl::StripAsciiWhitespace(message).empty()) return InvalidArgument("standard input has no message");
    conversation_.Add("user", message);
    ASSIGN_OR_RETURN(const ChatAnswer answer, Ask());
    if (answer.stopped) return absl::CancelledError("the answer was stopped");
    return FlushOutput();
  }

  absl::Status Run() {
    std::string message;
    while (ReadMessage(screen_, &message)) {
      interrupt_.Rearm();
      const std::string trimmed(absl::StripAsciiWhitespace(message));
      if (trimmed.empty()) continue;
      if (trimmed[0] == '/' && !trimmed.starts_with("//")) {
        if (!Command(trimmed)) return absl::OkStatus();
      } else {
        conversation_.Add("user", trimmed.starts_with("//") ? trimmed.substr(1) : message);
        AnswerLast();
      }
      RETURN_IF_ERROR(FlushOutput());
    }
    screen_.Say("\n");
    return FlushOutput();
  }

 private:
  absl::StatusOr<ChatAnswer> Ask() {
    std::optional<LateWord> word;
    if (!screen_.asks()) word.emplace("waiting for the answer");
    const absl::StatusOr<ChatAnswer> answer = session_.Ask(
        conversation_,
        [&](const std::string& text) {
          word.reset();
          screen_.Reason(text);
        },
        [&](const std::string& text) {
          word.reset();
          screen_.Answer(text);
        });
    screen_.End(answer.ok() ? Remark(*answer) : "");
    return answer;
  }

  // The last message is the user's. Without an answer it is taken back.
  void AnswerLast() {
    const absl::StatusOr<ChatAnswer> answer = Ask();
    interrupt_.Rearm();
    if (!answer.ok()) std::fprintf(stderr, "error: %s\n", std::string(answer.status().message()).c_str());
    if (!answer.ok() || answer->content.empty()) return conversation_.DropLast();
    conversation_.Add("assistant", answer->content);
  }

  // False: the program is to end.
  bool Command(const std::string& line) {
    const size_t space = std::min(line.find_first_of(" \t\n"), line.size());
    const std::string name = line.substr(1, space - 1), rest(absl::StripAsciiWhitespace(line.substr(space)));
    if (name == "exit" || name == "quit") return false;
    if (name == "help") {
      screen_.Say(kHelp);
    } else if (name == "clear") {
      conversation_.Clear();
      screen_.Say("The conversation begins anew.\n");
    } else if (name == "system") {
      if (!rest.empty()) conversation_.SetSystem(rest);
      screen_.Say(conversation_.system().empty() ? "There is no system message.\n"
                                                 : "System message: " + Screen::Shown(conversation_.system()) + "\n");
    } else if (name == "effort") {
      SetEffort(rest);
    } else if (name == "regen") {
      if (!conversation_.answered()) return Say("There is no answer yet.\n");
      conversation_.DropLast();
      AnswerLast();
    } else if (name == "save") {
      Tell(Save(rest), "The conversation is written.\n");
    } else if (name == "load") {
      Tell(Load(rest), "The conversation goes on.\n");
    } else {
      screen_.Say("There is no /" + Escaped(name, 40) + "; /help lists the commands, and //" + Escaped(name, 40) +
                  " sends the text.\n");
    }
    return true;
  }

  bool Say(const char* text) {
    screen_.Say(text);
    return true;
  }
  void Tell(const absl::Status& status, const std::string& done) {
    screen_.Say(status.ok() ? done : "error: " + std::string(status.message()) + "\n");
  }

  void SetEffort(const std::string& word) {
    if (word.empty()) {
      session_.fields().erase("reasoning_effort");
    } else {
      session_.fields()["reasoning_effort"] = word;
    }
    screen_.Say(word.empty() ? "The model reasons as much as it does by itself.\n" : "Reasoning effort: " + word + "\n");
  }

  absl::Status Save(const std::string& words) const {
    const bool force = absl::EndsWith(words, " --force");
    const std::string path(absl::StripAsciiWhitespace(force ? words.substr(0, words.size() - 8) : words));
    if (path.empty()) return InvalidArgument("/save needs the name of a file");
    const nlohmann::json json = {{"messages", conversation_.Messages()}};
    return WriteOutputFile(path, {.flag = "", .force = force, .inputs = inputs_},
                           json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  absl::Status Load(const std::string& path) {
    if (path.empty()) return InvalidArgument("/load needs the name of a file");
    ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConversationBytes));
    return conversation_.Load(text);
  }

  ChatSession& session_;
  InterruptHandler& interrupt_;
  const std::vector<std::string> inputs_;
  Screen screen_;
  Conversation conversation_;
};

// The server of this command's own: its gateway writes its port into a file each time that it starts.
class OwnServer {
 public:
  static absl::StatusOr<std::unique_ptr<OwnServer>> Start(const ChatOptions& options) {
    std::unique_ptr<OwnServer> server(new OwnServer);
    ASSIGN_OR_RETURN(server->folder_, TemporaryFolder::Create());
    server->port_file_ = server->folder_->File("http-port");
    GatewayProcess gateway = {.arguments = {"--listen", "127.0.0.1:0", "--port-file", server->port_file_, "--force",
                                            "--log-level", options.model.log_level},
                              .required = true};
    if (!options.template_file.empty()) {
      gateway.arguments.insert(gateway.arguments.end(), {"--chat-template-file", options.template_file});
    }
    ASSIGN_OR_RETURN(server->client_, Client::StartWithHttp(options.model, gateway));
    return server;
  }

  absl::StatusOr<HttpServer> Http() {
    const Deadline deadline = Deadline::In(kGatewayPatience);
    while (true) {
      RETURN_IF_ERROR(client_->Health());
      const absl::StatusOr<std::string> text = ReadSmallFile(port_file_);
      if (text.ok() && !text->empty()) {
        ASSIGN_OR_RETURN(const int64_t port, ParseInteger(std::string(absl::StripAsciiWhitespace(*text)), 1, 65535));
        return HttpServer{.encrypted = false, .host = "127.0.0.1", .port = static_cast<int>(port), .path = ""};
      }
      if (deadline.Passed())
        return Unavailable("the HTTP gateway has not started within %s", absl::FormatDuration(kGatewayPatience));
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  absl::Status Close() { return client_->Close(); }

 private:
  OwnServer() = default;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string port_file_;
  std::unique_ptr<Client> client_;
};

absl::Status RunChat(const ChatOptions& options) {
  RETURN_IF_ERROR(options.model.CheckOutputs({options.template_file}));
  nlohmann::json fields = nlohmann::json::object();
  RETURN_IF_ERROR(options.sampling.FillJson(fields));
  if (!options.effort.empty()) fields["reasoning_effort"] = options.effort;

  std::mutex mutex;
  ChatSession* running = nullptr;
  ASSIGN_OR_RETURN(const std::unique_ptr<InterruptHandler> interrupt, InterruptHandler::Start([&](int signal) {
                     const std::lock_guard lock(mutex);
                     if (running == nullptr || signal != SIGINT) ExitInterrupted();
                     if (!running->Cancel()) std::fputs("\n(Ctrl-C again or Ctrl-D ends)\n> ", stderr);
                   }));
  std::unique_ptr<OwnServer> own;
  HttpServer given;
  if (options.server.empty()) {
    ASSIGN_OR_RETURN(own, OwnServer::Start(options));
  } else {
    ASSIGN_OR_RETURN(given, ParseHttpServer(options.server));
  }
  ChatSession session([&]() -> absl::StatusOr<HttpServer> { return own != nullptr ? own->Http() : given; }, std::move(fields));
  ASSIGN_OR_RETURN(const std::string model, session.ModelName());
  session.fields()["model"] = model;
  {
    const std::lock_guard lock(mutex);
    running = &session;
  }
  Chat chat(session, *interrupt, options.system.value_or(""), {options.model.model, options.template_file});
  absl::Status status;
  if (isatty(STDIN_FILENO) == 0) {
    status = chat.AnswerInput();
  } else {
    std::fprintf(stderr, "%s; /help lists the commands\n", model.c_str());
    status = chat.Run();
  }
  {
    const std::lock_guard lock(mutex);
    running = nullptr;
  }
  RETURN_IF_ERROR(status);
  return own != nullptr ? own->Close() : absl::OkStatus();
}

}  // namespace

Command AddChat(CLI::App& app) {
  auto options = std::make_shared<ChatOptions>();
  options->model.AddWithServer(
      app, options->server,
      "use the HTTP of this server instead of starting one: http://HOST:PORT; other engines' servers do, too");
  options->sampling.AddTo(app);
  AddText(app, "--chat-template-file", options->template_file, "Jinja template of conversations, in place of the model file's")
      ->excludes(app.get_option("--server"));
  AddText(app, "--system", options->system, "system message");
  AddText(app, "--reasoning-effort", options->effort, "low, medium or high, for models that reason");
  app.footer(Examples({"ferry chat -m model.gguf", "ferry chat --server http://127.0.0.1:8080 --system \"Answer in French.\"",
                       "echo \"What is a ferry?\" | ferry chat -m model.gguf > answer.txt"}));
  return [options]() -> absl::Status {
    if (options->server.empty() && options->model.model.empty()) {
      return InvalidArgument("give -m FILE, or --server URL of a server that runs");
    }
    return RunChat(*options);
  };
}

}  // namespace ferry
