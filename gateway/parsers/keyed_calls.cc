#include "gateway/parsers/keyed_calls.h"

#include <algorithm>
#include <utility>

#include "gateway/chat/messages.h"

namespace ferry {

KeyedTags GlmTags() {
  return {.open = {"<tool_call>"},
          .close = {"</tool_call>"},
          .name_ends = {"\n", "<arg_key>", "</tool_call>"},
          .key_open = "<arg_key>",
          .key_close = "</arg_key>",
          .value_open = "<arg_value>",
          .value_close = "</arg_value>"};
}

KeyedTags QwenXmlTags() {
  return {.open = {"<tool_call>", "</tool_call>", "<function="},
          .close = {"</function>", "</tool_call>"},
          .name_ends = {">"},
          .key_open = "<parameter=",
          .key_close = ">",
          .value_open = "",
          .value_close = "</parameter>",
          .strips_newlines = true};
}

std::vector<std::string_view> KeyedCalls::tags() const {
  std::vector<std::string_view> all = tags_.open;
  all.insert(all.end(), tags_.close.begin(), tags_.close.end());
  all.insert(all.end(), {tags_.key_open, tags_.key_close, tags_.value_close});
  if (!tags_.value_open.empty()) all.push_back(tags_.value_open);
  return all;
}

bool KeyedCalls::Step(HeldText* held, bool at_end) {
  switch (state_) {
    case State::kOutside:
      return StepOutside(held, at_end);
    case State::kName:
      return StepName(held, at_end);
    case State::kBetween:
      return StepBetween(held, at_end);
    case State::kKey:
    case State::kBeforeValue:
      return StepKey(held, at_end);
    case State::kValue:
      return StepValue(held, at_end);
  }
  return false;
}

int KeyedCalls::TakeUntil(HeldText* held, const std::vector<std::string_view>& tags, bool at_end) {
  HeldText::Found found = held->Take(tags, at_end);
  text_ += found.before;
  return found.tag;
}

bool KeyedCalls::StepOutside(HeldText* held, bool at_end) {
  HeldText::Found found = held->Take(tags_.open, at_end);
  Content(std::move(found.before));
  if (found.tag < 0) return false;
  text_.clear();
  if (static_cast<size_t>(found.tag) + 1 < tags_.open.size()) return true;  // a tag around calls
  opened_by_ = tags_.open.back();
  state_ = State::kName;
  return true;
}

bool KeyedCalls::StepName(HeldText* held, bool at_end) {
  if (text_.empty()) held->SkipSpace();
  const int tag = TakeUntil(held, tags_.name_ends, at_end);
  if (tag < 0 && !at_end && text_.size() < 512) return false;
  name_ = Trimmed(text_);
  if (!IsFunctionName(name_)) {
    Content(opened_by_ + text_ + (tag < 0 ? "" : std::string(tags_.name_ends[static_cast<size_t>(tag)])));
    state_ = State::kOutside;
    return true;
  }
  if (tag >= 0 && tags_.name_ends[static_cast<size_t>(tag)].starts_with('<'))
    held->PutBack(tags_.name_ends[static_cast<size_t>(tag)]);
  StartCall(name_);
  num_arguments_ = 0;
  text_.clear();
  state_ = State::kBetween;
  return true;
}

bool KeyedCalls::StepBetween(HeldText* held, bool at_end) {
  std::vector<std::string_view> tags = tags_.close;
  tags.push_back(tags_.key_open);
  const int tag = TakeUntil(held, tags, at_end);
  if (tag < 0) {
    if (at_end) CloseCall(/*complete=*/true);
    return false;
  }
  const std::string stray = Trimmed(std::exchange(text_, {}));
  if (static_cast<size_t>(tag) < tags_.close.size()) {
    CloseCall(/*complete=*/true);
  } else {
    state_ = State::kKey;
  }
  // Text between arguments has no meaning; behind the call it is content.
  if (!stray.empty() && state_ == State::kOutside) Content(stray);
  return true;
}

bool KeyedCalls::StepKey(HeldText* held, bool at_end) {
  const bool in_key = state_ == State::kKey;
  const int tag = TakeUntil(held, {in_key ? tags_.key_close : tags_.value_open}, at_end);
  if (tag < 0) {
    if (at_end) CloseCall(/*complete=*/false);
    return false;
  }
  if (in_key) key_ = Trimmed(text_);
  text_.clear();
  state_ = in_key && !tags_.value_open.empty() ? State::kBeforeValue : State::kValue;
  return true;
}

bool KeyedCalls::StepValue(HeldText* held, bool at_end) {
  const int tag = TakeUntil(held, {tags_.value_close}, at_end);
  if (tag < 0 && !at_end) return false;
  std::string value = std::exchange(text_, {});
  if (tags_.strips_newlines && value.starts_with('\n')) value.erase(0, 1);
  if (tags_.strips_newlines && value.ends_with('\n')) value.pop_back();
  EmitArgument(value);
  state_ = State::kBetween;
  if (tag < 0) CloseCall(/*complete=*/false);
  return tag >= 0;
}

void KeyedCalls::EmitArgument(const std::string& value) {
  const auto dump = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); };
  const Json* schema = ParameterSchema(tools_, name_, key_);
  const bool is_text = schema != nullptr && schema->is_object() && schema->contains("type") && (*schema)["type"] == "string";
  const Json parsed = is_text ? Json(Json::value_t::discarded) : Json::parse(value, nullptr, /*allow_exceptions=*/false);
  Arguments((num_arguments_++ == 0 ? "{" : ", ") + dump(key_) + ": " + dump(parsed.is_discarded() ? Json(value) : parsed));
}

void KeyedCalls::CloseCall(bool complete) {
  Arguments(num_arguments_ == 0 ? "{}" : "}");
  EndCall(complete);
  state_ = State::kOutside;
  text_.clear();
}

}  // namespace ferry
