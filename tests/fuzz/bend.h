#pragma once

// Moves one number of a message to where checks have their edges. A mutation of the wire's bytes seldom makes an id one too
// large and leaves the rest whole; this does it for two bytes of input.

#include <google/protobuf/message.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace ferry {

// A number somewhere inside a message.
struct MessageNumber {
  google::protobuf::Message* message;
  const google::protobuf::FieldDescriptor* field;
  int index;  // -1: not repeated
};

inline void CollectNumbers(google::protobuf::Message* message, std::vector<MessageNumber>* numbers) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message->GetReflection();
  std::vector<const FieldDescriptor*> fields;  // those that are set
  reflection.ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(*message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        CollectNumbers(field->is_repeated() ? reflection.MutableRepeatedMessage(message, field, i)
                                            : reflection.MutableMessage(message, field),
                       numbers);
      } else if (field->cpp_type() != FieldDescriptor::CPPTYPE_STRING && field->cpp_type() != FieldDescriptor::CPPTYPE_BOOL) {
        numbers->push_back({message, field, field->is_repeated() ? i : -1});
      }
    }
  }
}

// What `how` makes of a number: one more, one less, none, the largest, twice as much; of a fraction also no number at all.
template <typename Number>
Number Bent(Number value, uint8_t how) {
  switch (how % 6) {
    case 0:
      return value < std::numeric_limits<Number>::max() ? static_cast<Number>(value + 1) : value;
    case 1:
      return value > std::numeric_limits<Number>::lowest() ? static_cast<Number>(value - 1) : value;
    case 2:
      return 0;
    case 3:
      return std::numeric_limits<Number>::max();
    case 4:
      return value < std::numeric_limits<Number>::max() / 2 && value > 0 ? static_cast<Number>(value * 2) : value;
    default:
      return std::numeric_limits<Number>::has_quiet_NaN ? std::numeric_limits<Number>::quiet_NaN() : Number{1};
  }
}

// Bends the number that `which` chooses among those that are set.
inline void Bend(google::protobuf::Message* message, uint8_t which, uint8_t how) {
  using google::protobuf::FieldDescriptor;
  std::vector<MessageNumber> numbers;
  CollectNumbers(message, &numbers);
  if (numbers.empty()) return;
  const auto& [owner, field, index] = numbers[which % numbers.size()];
  const google::protobuf::Reflection& reflection = *owner->GetReflection();
#define FERRY_BEND(Type)                                                                         \
  index < 0 ? reflection.Set##Type(owner, field, Bent(reflection.Get##Type(*owner, field), how)) \
            : reflection.SetRepeated##Type(owner, field, index, Bent(reflection.GetRepeated##Type(*owner, field, index), how))
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      FERRY_BEND(Int32);
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      FERRY_BEND(Int64);
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      FERRY_BEND(UInt32);
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      FERRY_BEND(UInt64);
      break;
    case FieldDescriptor::CPPTYPE_FLOAT:
      FERRY_BEND(Float);
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      FERRY_BEND(Double);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      FERRY_BEND(EnumValue);
      break;
    default:
      break;
  }
#undef FERRY_BEND
}

}  // namespace ferry
