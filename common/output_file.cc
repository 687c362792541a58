#include "common/output_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

namespace ferry {
namespace {

constexpr int kAttempts = 100;  // to find a temporary name that is free

const char* KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISLNK(mode)) return "a link";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

std::string NameOf(const std::string& path, const OutputFileOptions& options) {
  return options.flag.empty() ? path : options.flag + " " + path;
}

}  // namespace

absl::Status CheckOutput(const std::string& path, const OutputFileOptions& options) {
  struct stat there, input;
  if (::lstat(path.c_str(), &there) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return FailedPrecondition("%s cannot be written: %s", NameOf(path, options), std::strerror(errno));
  }
  // A link is followed for the question of what would be lost, and refused below in any case.
  struct stat target = there;
  if (S_ISLNK(there.st_mode) && ::stat(path.c_str(), &target) != 0) target = there;
  for (const std::string& name : options.inputs) {
    if (name.empty() || ::stat(name.c_str(), &input) != 0) continue;
    if (input.st_dev == target.st_dev && input.st_ino == target.st_ino) {
      return FailedPrecondition("%s would be written over %s, which is read: name another file", NameOf(path, options), name);
    }
  }
  if (!S_ISREG(there.st_mode)) {
    return FailedPrecondition("%s is %s: name a file", NameOf(path, options), KindOf(there.st_mode));
  }
  if (!options.force) {
    return FailedPrecondition("%s exists already: name another file, or give --force to replace it", NameOf(path, options));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path, OutputFileOptions options) {
  RETURN_IF_ERROR(CheckOutput(path, options));
  std::unique_ptr<OutputFile> file(new OutputFile(path, std::move(options)));
  std::random_device random;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    file->temporary_ = absl::StrFormat("%s.%08x.part", path, random());
    file->removed_on_signal_.emplace(file->temporary_);
    file->descriptor_ = UniqueFd(::open(file->temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file->descriptor_.valid()) return file;
    const int error = errno;
    file->removed_on_signal_.reset();
    if (error != EEXIST) return file->Error(error, "cannot be written");
  }
  return file->Error(EEXIST, "cannot be written");
}

OutputFile::~OutputFile() {
  if (descriptor_.valid()) ::unlink(temporary_.c_str());
}

std::string OutputFile::Name() const { return NameOf(path_, options_); }

absl::Status OutputFile::Error(int error, const char* what) const {
  if (error == ENOSPC || error == EDQUOT) return ResourceExhausted("%s %s: the disk is full", Name(), what);
  return FailedPrecondition("%s %s: %s", Name(), what, std::strerror(error));
}

absl::Status OutputFile::Reserve(uint64_t bytes) {
  if (::fallocate(descriptor_.get(), 0, 0, static_cast<off_t>(bytes)) == 0) return absl::OkStatus();
  if (errno == ENOSPC) return ResourceExhausted("%s: no room on the disk for %d bytes", Name(), bytes);
  if (::ftruncate(descriptor_.get(), static_cast<off_t>(bytes)) != 0) return Error(errno, "cannot grow");
  return absl::OkStatus();
}

absl::Status OutputFile::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Error(errno, "could not be written");
    offset += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Append(std::string_view text) {
  RETURN_IF_ERROR(WriteAt(appended_, std::as_bytes(std::span(text))));
  appended_ += text.size();
  return absl::OkStatus();
}

absl::Status OutputFile::Commit() {
  absl::Status status = CheckOutput(path_, options_);
  if (::close(descriptor_.Release()) != 0 && status.ok()) status = Error(errno, "could not be completed");
  if (status.ok() && ::rename(temporary_.c_str(), path_.c_str()) != 0) status = Error(errno, "could not be completed");
  if (!status.ok()) ::unlink(temporary_.c_str());
  removed_on_signal_.reset();
  return status;
}

absl::Status WriteOutputFile(const std::string& path, OutputFileOptions options, std::string_view text) {
  ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path, std::move(options)));
  RETURN_IF_ERROR(file->Append(text));
  return file->Commit();
}

}  // namespace ferry
