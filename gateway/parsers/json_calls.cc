#include "gateway/parsers/json_calls.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace ferry {
namespace {

// Reads {"name": "NAME", "arguments": at the beginning of a text that is not complete yet.
class Head {
 public:
  enum class Result { kIncomplete, kFound, kOther };

  explicit Head(std::string_view text) : text_(text) {}

  Result Read() {
    std::string key;
    for (const Result step : {Take('{'), TakeString(&key)}) {
      if (step != Result::kFound) return step;
    }
    if (key != "name") return Result::kOther;
    for (const Result step : {Take(':'), TakeString(&name_), Take(','), TakeString(&key), Take(':'), TakeSpace()}) {
      if (step != Result::kFound) return step;
    }
    return key == "arguments" || key == "parameters" ? Result::kFound : Result::kOther;
  }

  const std::string& name() const { return name_; }
  size_t bytes() const { return at_; }

 private:
  // Whether something follows the white space.
  Result TakeSpace() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
    return failed_ ? Result::kOther : at_ < text_.size() ? Result::kFound : Result::kIncomplete;
  }

  Result Take(char c) {
    if (const Result space = TakeSpace(); space != Result::kFound) return space;
    if (text_[at_] != c) return Fail();
    ++at_;
    return Result::kFound;
  }

  Result TakeString(std::string* value) {
    if (const Result quote = Take('"'); quote != Result::kFound) return quote;
    size_t end = at_;
    while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) {
      at_ = text_.size();
      return Result::kIncomplete;
    }
    const Json parsed = Json::parse(text_.substr(at_ - 1, end + 2 - at_), nullptr, /*allow_exceptions=*/false);
    if (!parsed.is_string()) return Fail();
    *value = parsed.get<std::string>();
    at_ = end + 1;
    return Result::kFound;
  }

  Result Fail() {
    failed_ = true;
    return Result::kOther;
  }

  const std::string_view text_;
  size_t at_ = 0;
  bool failed_ = false;
  std::string name_;
};

std::optional<std::string> NameOf(const Json& call) {
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return std::nullopt;
  return call["name"].get<std::string>();
}

}  // namespace

bool JsonCalls::Step(HeldText* held, bool at_end) {
  switch (state_) {
    case State::kOutside: {
      HeldText::Found found = held->Take({&kOpen, 1}, at_end);
      Content(std::move(found.before));
      if (found.tag < 0) return false;
      body_.clear();
      state_ = State::kBody;
      return true;
    }
    case State::kBody:
      return StepBody(held, at_end);
    case State::kArguments:
      return StepArguments(held, at_end);
    case State::kRest:
      return StepRest(held, at_end);
  }
  return false;
}

bool JsonCalls::StepBody(HeldText* held, bool at_end) {
  Head head(held->text());
  const Head::Result result = head.Read();
  // Arguments that are not an object are taken as a whole.
  if (result == Head::Result::kFound && held->text()[head.bytes()] == '{') {
    held->Drop(head.bytes());
    StartCall(head.name());
    depth_ = 0;
    in_string_ = escaped_ = false;
    state_ = State::kArguments;
    return true;
  }
  if (result == Head::Result::kIncomplete && !at_end && held->text().find(kClose) == std::string_view::npos) return false;
  HeldText::Found found = held->Take({&kClose, 1}, at_end);
  body_ += found.before;
  if (found.tag < 0 && !at_end) return false;
  state_ = State::kOutside;
  EmitWhole(/*closed=*/found.tag >= 0);
  return found.tag >= 0;
}

// The whole body is one JSON text, or else content.
void JsonCalls::EmitWhole(bool closed) {
  const Json call = Json::parse(body_, nullptr, /*allow_exceptions=*/false);
  const std::optional<std::string> name = NameOf(call);
  if (!name) {
    Content(std::string(kOpen) + body_ + (closed ? std::string(kClose) : ""));
    return;
  }
  const Json arguments = call.contains("arguments") ? call["arguments"] : call.value("parameters", Json::object());
  StartCall(*name);
  // Some models write the arguments' JSON as a string.
  Arguments(arguments.is_string() ? arguments.get<std::string>()
                                  : arguments.dump(-1, ' ', false, Json::error_handler_t::replace));
  EndCall();
}

// An object: it ends where its bracket closes.
bool JsonCalls::StepArguments(HeldText* held, bool at_end) {
  const std::string_view text = held->text();
  size_t end = 0;
  bool complete = false;
  while (end < text.size() && !complete) {
    const char c = text[end++];
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      complete = --depth_ <= 0;
    }
  }
  Arguments(std::string(text.substr(0, end)));
  held->Drop(end);
  if (complete) {
    state_ = State::kRest;
    return true;
  }
  if (at_end) {
    EndCall(/*complete=*/false);
    state_ = State::kOutside;
  }
  return false;
}

bool JsonCalls::StepRest(HeldText* held, bool at_end) {
  // The call's own bracket; more than that is content.
  const HeldText::Found found = held->Take({&kClose, 1}, at_end);
  body_ += found.before;
  if (found.tag < 0 && !at_end) return false;
  EndCall();
  state_ = State::kOutside;
  std::string rest = Trimmed(std::exchange(body_, {}));
  if (rest.starts_with('}')) rest.erase(0, 1);
  if (!rest.empty()) Content(std::move(rest));
  return found.tag >= 0;
}

}  // namespace ferry
