#pragma once

// The certificate of HTTPS, read again when its files change.

#include <boost/asio/ssl/context.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "common/status.h"

namespace ferry {

// Used by one thread once it is loaded.
class HttpTls {
 public:
  // PEM files: a certificate chain and its key. InvalidArgument: one of them cannot be used.
  static absl::StatusOr<std::unique_ptr<HttpTls>> Load(const std::string& certificate, const std::string& key);

  // For the next connection. Looks at the files at most every 30 s; while new ones cannot be used, the old ones stay.
  std::shared_ptr<boost::asio::ssl::context> Current();

 private:
  HttpTls(std::string certificate, std::string key) : certificate_(std::move(certificate)), key_(std::move(key)) {}
  // When the certificate and the key were written.
  using Times = std::pair<std::filesystem::file_time_type, std::filesystem::file_time_type>;
  absl::Status Read();
  Times Changed() const;

  const std::string certificate_, key_;
  std::shared_ptr<boost::asio::ssl::context> context_;
  Times changed_;
  std::chrono::steady_clock::time_point next_look_;
};

}  // namespace ferry
