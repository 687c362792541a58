#include "coordinator/own_files.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "coordinator/planning/rates_file.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

// The folder of a file, and that of what it links to.
void AddFoldersOf(const fs::path& file, std::vector<std::string>* folders) {
  std::error_code error;
  folders->push_back(fs::absolute(file, error).parent_path().string());
  const fs::path target = fs::canonical(file, error);
  if (!error) folders->push_back(target.parent_path().string());
}

// Each part of a split model may be a link to another folder.
void AddModel(const fs::path& model, std::vector<std::string>* folders) {
  AddFoldersOf(model, folders);
  std::error_code error;
  for (fs::directory_iterator entry(fs::absolute(model, error).parent_path(), error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code unknown;
    if (entry->is_symlink(unknown) && entry->path().extension() == model.extension()) AddFoldersOf(entry->path(), folders);
  }
}

}  // namespace

FileAccess FilesOf(const CoordinatorOptions& options) {
  // The system's: libraries that are loaded late, names of hosts, limits, time zones.
  FileAccess access = {.readable = {"/etc", "/run/systemd/resolve", "/run/NetworkManager", "/usr", "/lib", "/lib64", "/proc",
                                    "/sys", "/dev/random", "/dev/urandom", "/dev/zero"},
                       .writable = {"/dev/null"}};
  for (const char* file : {"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}) AddFoldersOf(file, &access.readable);
  AddModel(options.model, &access.readable);
  for (const std::string& file : {options.tls_cert, options.tls_key, options.api_keys}) {
    if (!file.empty()) AddFoldersOf(file, &access.readable);
  }
  for (const std::string& file : {options.api_socket, options.cluster_socket, options.port_file, options.trace}) {
    if (!file.empty()) AddFoldersOf(file, &access.writable);
  }
  if (!options.cluster_listen.empty()) access.writable.push_back(options.cluster_certs);
  if (const std::string rates = RatesDirectory(); !rates.empty()) {
    std::error_code ignored;
    fs::create_directories(rates, ignored);
    access.writable.push_back(rates);
  }
  if (options.cluster_socket.empty()) {  // TemporaryFolder chooses among these
    for (const char* const variable : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
      if (const char* const folder = std::getenv(variable); folder != nullptr) access.writable.push_back(folder);
    }
    access.writable.push_back("/tmp");
  }
  return access;
}

}  // namespace ferry
