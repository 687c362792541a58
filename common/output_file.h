#pragma once

// A file that a command writes as its result: never over something else by accident, and whole or not at all.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/signal_cleanup.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

struct OutputFileOptions {
  std::string flag;                 // that named the file, for messages: "--trace"; may be empty
  bool force = false;               // an existing file may be replaced
  std::vector<std::string> inputs;  // files that are read, which nothing may replace
};

// FailedPrecondition: `path` names an existing file without `force`; an input, by whatever name, with or without it; or something
// that is no regular file: a folder, a link, a device, a pipe. OK: nothing is there, or it may be replaced.
absl::Status CheckOutput(const std::string& path, const OutputFileOptions& options);

// Written beside `path` under a temporary name; takes its real one by Commit. Without Commit, and by signals, it is removed.
class OutputFile {
 public:
  // CheckOutput's errors, and FailedPrecondition: it cannot be created.
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path, OutputFileOptions options);
  ~OutputFile();

  // Takes the room at once, so that a full disk is noticed before minutes of work; not all file systems can. ResourceExhausted:
  // no room.
  absl::Status Reserve(uint64_t bytes);
  // Safe from several threads for disjoint parts. ResourceExhausted: the disk is full. Other errors: what the system said.
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes);
  // Behind the texts appended before; from one thread at a time.
  absl::Status Append(std::string_view text);
  // Checks `path` again, since something may have come there meanwhile.
  absl::Status Commit();

 private:
  OutputFile(std::string path, OutputFileOptions options) : path_(std::move(path)), options_(std::move(options)) {}
  std::string Name() const;  // for messages
  absl::Status Error(int error, const char* what) const;

  const std::string path_;
  const OutputFileOptions options_;
  std::string temporary_;
  std::optional<RemovedOnSignal> removed_on_signal_;
  UniqueFd descriptor_;
  uint64_t appended_ = 0;
};

// A file that holds `text`. A reader that waits for it sees all of it or none. Errors: those of OutputFile.
absl::Status WriteOutputFile(const std::string& path, OutputFileOptions options, std::string_view text);

}  // namespace ferry
