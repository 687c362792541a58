#pragma once

// The threads that tokenize, and the unary calls whose answers they make.
//
// A text can need thirty times its bytes while it is tokenized, and seconds: long texts have a thread of their own and take turns
// there, so that they need the memory of one and no short text waits for them.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/repeating_thread.h"
#include "coordinator/generation/task_pool.h"

namespace ferry {

class TextCalls {
 public:
  struct Options {
    size_t long_bytes = 256 << 10;  // of a message, from which on its text counts as long
    TaskRoom short_room = {.tasks = 256, .bytes = 32 << 20};
    TaskRoom long_room = {.tasks = 256, .bytes = 16 << 20};
    size_t max_unread_bytes = 32 << 20;  // of answers that their clients have not taken
    absl::Duration reader_patience = absl::Minutes(1);
  };
  // `clock` outlives this. ResourceExhausted: the threads cannot be started.
  static absl::StatusOr<std::unique_ptr<TextCalls>> Create(const Clock* clock, Options options);
  // Runs all tasks, then ends. No call begins meanwhile, and none is left when gRPC has shut its server down.
  ~TextCalls();

  // Runs `task`, which works on a message of `bytes` bytes. ResourceExhausted, and nothing is done: too many texts wait.
  absl::Status Post(std::function<void()> task, size_t bytes);

  // Answers a call with `answer`, which fills the response of the call. It does not run when the call is cancelled before its
  // turn, or when clients have left too many answers unread, which is ResourceExhausted. A client that does not take its answer
  // for reader_patience gets CANCELLED.
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                   const grpc::ByteBuffer* response, std::function<absl::Status()> answer);

 private:
  class Call;
  TextCalls(const Clock* clock, const Options& options) : clock_(*clock), options_(options) {}
  void GiveUpSlowReaders();

  const Clock& clock_;
  const Options options_;
  std::mutex mutex_;
  std::unordered_set<Call*> unread_;  // guarded by mutex_: finished, and not taken by their clients yet
  size_t unread_bytes_ = 0;           // guarded by mutex_: of their answers
  std::unique_ptr<RepeatingThread> watch_;
  std::unique_ptr<TaskPool> short_texts_, long_texts_;
};

}  // namespace ferry
