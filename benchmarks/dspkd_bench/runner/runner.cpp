// The program that measures ExecuTorch programs on a device without Python, such as a phone.
//
//     dspkd_runner [--seconds S] [--min-rounds N] [--max-rounds N] [--precision P] [--sustained S] [--pause S]
//                  [--warmup N] [--threads N] [--input FILE.bin ...] model1.pte [model2.pte ...]
//     dspkd_runner --cold [--threads N] [--input FILE.bin] model.pte
//
// --input is the picture for all models, or is given once for each in their order. It warms up, times the models in
// turns, and with --sustained runs each alone after --pause, by the rules of `agent.py`. --cold only starts one model
// and says how long that takes and what memory it needs. The program prints events, one JSON object a line: start,
// busy, alive, cold, loaded, failed, output, began, times, state, sustained, end. Exit 0: measured, ended by SIGTERM, or
// busy; 2: bad arguments; 4: no model could be run; 1: nobody reads any more. SIGALRM ends it if a call does not return on
// SIGTERM. `runner_build.py` compiles it against the headers and libraries of the executorch wheel.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#if __has_include(<executorch/extension/threadpool/threadpool.h>)
#include <executorch/extension/threadpool/threadpool.h>
#else
// The wheel of 1.5 has the thread pool's library and not its header. This is the part of it that is needed; a library
// that no longer has it does not link.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
#endif

namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using Clock = std::chrono::steady_clock;

constexpr int kNobodyReads = 1;
constexpr int kBadArguments = 2;
constexpr int kNothingRan = 4;
// As agent.py does.
constexpr int kColdRuns = 3;
constexpr double kStateSeconds = 1.0;
constexpr double kAliveSeconds = 10.0;
// One less than what an overflow is read as.
constexpr long kMostRounds = std::numeric_limits<long>::max() - 1;
constexpr size_t kSteadyWindow = 5;
constexpr double kSteadyChange = 0.05;
// Of MLPerf's estimate of p90, as in agent.py.
constexpr double kPercentile = 0.9;
constexpr double kConfidence = 0.99;
constexpr const char* kUsage =
    "usage: dspkd_runner [--seconds S] [--min-rounds N] [--max-rounds N] [--precision P] [--sustained S] [--pause S]\n"
    "                    [--warmup N] [--threads N] [--input FILE.bin ...] model1.pte [model2.pte ...]\n"
    "       dspkd_runner --cold [--threads N] [--input FILE.bin] model.pte\n";
// A call of a model that hangs would never look at `stop_asked`.
constexpr unsigned kLastCallSeconds = 3;

volatile std::sig_atomic_t stop_asked = 0;

void ask_to_stop(int) {
  stop_asked = 1;
  alarm(kLastCallSeconds);
}

double milliseconds(Clock::duration span) { return std::chrono::duration<double, std::milli>(span).count(); }

// JSON -------------------------------------------------------------------------------------------------------------

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char character : text) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      out += '\\';
      out += character;
    } else if (code < 0x20 || code >= 0x7f) {
      // Names of files and zones need not be UTF-8. Byte by byte they stay readable as Latin-1.
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", code);
      out += escape;
    } else {
      out += character;
    }
  }
  return out + '"';
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string number(const std::optional<long>& value) { return value ? std::to_string(*value) : "null"; }

template <typename Values, typename Text>
std::string array(const Values& values, Text text) {
  std::string out = "[";
  for (const auto& value : values) {
    if (out.size() > 1) out += ',';
    out += text(value);
  }
  return out + ']';
}

std::string array(const std::vector<double>& values) {
  return array(values, [](double value) { return number(value); });
}

Clock::time_point last_said = Clock::now();

void say(const std::string& event, const std::string& members = "") {
  const std::string line = "{\"event\":" + quoted(event) + members + "}\n";
  if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size() || std::fflush(stdout) != 0) _exit(kNobodyReads);
  last_said = Clock::now();
}

// Whoever waits can tell slow from hanging.
void keep_in_touch() {
  if (milliseconds(Clock::now() - last_said) >= kAliveSeconds * 1e3) say("alive");
}

std::string member(const char* name, const std::string& json) { return std::string(",\"") + name + "\":" + json; }

std::string index_member(size_t index) { return member("index", std::to_string(index)); }

void say_failed(size_t index, const std::string& message) {
  say("failed", index_member(index) + member("message", quoted(message)));
}

// The device's state -----------------------------------------------------------------------------------------------

// Tests stand in a folder for the root of the file system.
std::string under_root(const std::string& path) {
  const char* root = std::getenv("DSPKD_RUNNER_ROOT");
  return (root ? root : "") + path;
}

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<long> whole_number(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text->c_str(), &end, 10);
  while (*end == ' ') ++end;
  if (end == text->c_str() || *end != '\0') return std::nullopt;
  return value;
}

// Folders named `prefix` and a number, in the order of the numbers.
std::vector<std::string> numbered(const std::string& folder, const std::string& prefix) {
  std::vector<std::pair<long, std::string>> found;
  if (DIR* listing = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(listing)) {
      const std::string name = entry->d_name;
      if (name.rfind(prefix, 0) != 0) continue;
      if (const auto value = whole_number(name.substr(prefix.size()))) found.emplace_back(*value, folder + "/" + name);
    }
    closedir(listing);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (const auto& item : found) paths.push_back(item.second);
  return paths;
}

std::string clocks_and_governors() {
  std::vector<long> clocks;
  std::set<std::string> governors;
  for (const auto& cpu : numbered(under_root("/sys/devices/system/cpu"), "cpu")) {
    if (const auto clock = whole_number(first_line(cpu + "/cpufreq/scaling_cur_freq"))) clocks.push_back(*clock);
    if (const auto governor = first_line(cpu + "/cpufreq/scaling_governor")) governors.insert(*governor);
  }
  return member("clocks_khz", array(clocks, [](long clock) { return std::to_string(clock); })) +
         member("governor", array(governors, quoted));
}

std::string temperatures() {
  std::string out;
  std::set<std::string> seen;
  for (const auto& zone : numbered(under_root("/sys/class/thermal"), "thermal_zone")) {
    const auto value = whole_number(first_line(zone + "/temp"));
    // Phones give absurdly low values for sensors that are switched off.
    if (!value || *value <= -100000) continue;
    const std::string folder = zone.substr(zone.rfind('/') + 1);
    std::string name = first_line(zone + "/type").value_or(folder);
    // Several zones may be of one type, and a JSON object has each name once.
    if (!seen.insert(name).second) name += " (" + folder + ")";
    out += (out.empty() ? "" : ",") + quoted(name) + ":" + number(static_cast<double>(*value) / 1000.0);
  }
  return member("temperatures_c", "{" + out + "}");
}

void say_state(double at_ms, const char* phase, const std::string& members = "") {
  const auto load = first_line(under_root("/proc/loadavg"));
  say("state", member("at_ms", number(at_ms)) + member("phase", quoted(phase)) + members +
                   member("load1", load ? number(std::strtod(load->c_str(), nullptr)) : "null") +
                   clocks_and_governors() + temperatures());
}

// The value of a line such as "VmRSS:     1234 kB".
std::optional<long> memory_kib(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::strtol(line.c_str() + field.size() + 1, nullptr, 10);
  }
  return std::nullopt;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (colon != std::string::npos && (line.rfind("model name", 0) == 0 || line.rfind("Hardware", 0) == 0)) {
      return quoted(line.substr(colon + 2));
    }
  }
  return "null";
}

void say_start() {
  utsname system{};
  uname(&system);
  cpu_set_t set;
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  std::vector<int> cores;
  for (int core = 0; known && core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  say("start", member("protocol", "1") + member("program", quoted("dspkd-runner")) +
                   member("machine", quoted(system.machine)) +
                   member("os", quoted(std::string(system.sysname) + " " + system.release)) +
                   member("cores", known ? std::to_string(cores.size()) : "null") +
                   member("affinity", known ? array(cores, [](int core) { return std::to_string(core); }) : "null") +
                   member("cpu", cpu_name()));
}

// Arguments --------------------------------------------------------------------------------------------------------

struct Settings {
  double seconds = 20.0;
  long min_rounds = 50;
  long max_rounds = 2000;
  std::optional<double> precision;
  double sustained = 0.0;
  double pause = 3.0;
  long warmup = 10;
  long threads = 1;
  bool cold = false;
  std::vector<std::string> inputs;
  std::vector<std::string> models;
};

[[noreturn]] void refuse(const std::string& message) {
  std::fprintf(stderr, "dspkd_runner: %s\n%s", message.c_str(), kUsage);
  std::exit(kBadArguments);
}

long count(const std::string& name, const std::string& text, long least,
           long most = std::numeric_limits<int32_t>::max()) {
  const auto value = whole_number(text);
  if (!value || *value < least || *value > most) {
    refuse(name + " takes a whole number from " + std::to_string(least) + ", not '" + text + "'");
  }
  return *value;
}

double not_negative(const std::string& name, const std::string& text, const char* what = "seconds") {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value) || value < 0.0) {
    refuse(name + " takes " + what + " from 0, not '" + text + "'");
  }
  return value;
}

void set(Settings& settings, const std::string& name, const std::string& value) {
  if (name == "--seconds") {
    settings.seconds = not_negative(name, value);
  } else if (name == "--precision") {
    settings.precision = not_negative(name, value, "a fraction");
  } else if (name == "--sustained") {
    settings.sustained = not_negative(name, value);
  } else if (name == "--pause") {
    settings.pause = not_negative(name, value);
  } else if (name == "--min-rounds") {
    settings.min_rounds = count(name, value, 1, kMostRounds);
  } else if (name == "--max-rounds") {
    settings.max_rounds = count(name, value, 1, kMostRounds);
  } else if (name == "--warmup") {
    settings.warmup = count(name, value, 0);
  } else if (name == "--threads") {
    settings.threads = count(name, value, 1);
  } else if (name == "--input") {
    settings.inputs.push_back(value);
  } else {
    refuse("there is no " + name);
  }
}

Settings read_arguments(const std::vector<std::string>& words) {
  Settings settings;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].rfind("--", 0) != 0) {
      settings.models.push_back(words[i]);
    } else if (words[i] == "--cold") {
      settings.cold = true;
    } else if (i + 1 < words.size()) {
      set(settings, words[i], words[i + 1]);
      ++i;
    } else {
      refuse(words[i] + " takes a value");
    }
  }
  if (settings.models.empty()) refuse("no model is given");
  if (settings.inputs.size() > 1 && settings.inputs.size() != settings.models.size()) {
    refuse("--input is given " + std::to_string(settings.inputs.size()) + " times for " +
           std::to_string(settings.models.size()) + " models");
  }
  if (settings.cold && settings.models.size() > 1) refuse("--cold takes one model");
  // As in agent.py, the least number wins.
  settings.max_rounds = std::max(settings.min_rounds, settings.max_rounds);
  return settings;
}

// The picture ------------------------------------------------------------------------------------------------------

// uint8 (side, side, 3), as a decoder gives it.
struct Picture {
  size_t side;
  std::vector<uint8_t> bytes;
};

Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse("cannot read " + path);
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto side = static_cast<size_t>(std::lround(std::sqrt(static_cast<double>(bytes.size()) / 3.0)));
  if (side == 0 || side * side * 3 != bytes.size()) {
    refuse(path + " has " + std::to_string(bytes.size()) + " bytes, which is no square picture of three channels");
  }
  return {side, std::move(bytes)};
}

Picture noise(size_t side) {
  std::mt19937 random(0);
  Picture picture{side, std::vector<uint8_t>(side * side * 3)};
  for (auto& value : picture.bytes) value = static_cast<uint8_t>(random() & 0xff);
  return picture;
}

// (H, W, 3) -> (3, H, W) in [0, 1].
std::vector<float> planes(const Picture& picture) {
  const size_t area = picture.side * picture.side;
  std::vector<float> values(3 * area);
  for (size_t pixel = 0; pixel < area; ++pixel) {
    for (size_t channel = 0; channel < 3; ++channel) {
      values[channel * area + pixel] = static_cast<float>(picture.bytes[3 * pixel + channel]) / 255.0f;
    }
  }
  return values;
}

// A model ----------------------------------------------------------------------------------------------------------

// What ExecuTorch has logged as an error since it was last cleared: more than an error's number says.
std::string last_error;

void keep_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
                 size_t length) {
  // The first one names the cause; those that follow come from its callers.
  if ((level == kError || level == kFatal) && last_error.empty()) last_error.assign(message, length);
  if (level == kFatal) std::fprintf(stderr, "executorch: %.*s\n", static_cast<int>(length), message);
}

std::string explained(const char* doing, Error error) {
  char code[16];
  std::snprintf(code, sizeof code, " (0x%02x)", static_cast<unsigned>(error));
  return std::string(doing) + ": " + executorch::runtime::to_string(error) + code +
         (last_error.empty() ? "" : ": " + last_error);
}

class Model {
 public:
  explicit Model(const std::string& path) : module_(path, Module::LoadMode::Mmap) {}

  // Empty, or what is wrong.
  std::string load() {
    last_error.clear();
    // Python's runtime checks as much, so that times of loading compare.
    Error error = module_.load(executorch::runtime::Program::Verification::InternalConsistency);
    if (error == Error::Ok) error = module_.load_forward();
    return error == Error::Ok ? "" : explained("cannot be loaded", error);
  }

  // Reads shape and type from the program and fills them from `given`, else with noise. Empty, or what is wrong.
  std::string prepare(const std::optional<Picture>& given) {
    const auto meta = module_.method_meta("forward");
    if (!meta.ok()) return explained("cannot be read", meta.error());
    if (meta->num_inputs() != 1) return "takes " + std::to_string(meta->num_inputs()) + " inputs, expected one";
    const auto image = meta->input_tensor_meta(0);
    if (!image.ok()) return explained("its input cannot be read", image.error());
    const std::vector<int32_t> shape(image->sizes().begin(), image->sizes().end());
    const bool bytes = image->scalar_type() == ScalarType::Byte;
    const size_t side = side_of(shape, bytes);
    if (side == 0 || !(bytes || image->scalar_type() == ScalarType::Float)) {
      return "takes neither float32 (1, 3, H, H) nor uint8 (1, H, H, 3)";
    }
    if (given && given->side != side) {
      return "takes pictures of " + std::to_string(side) + " px, --input has " + std::to_string(given->side) + " px";
    }
    fill(given ? *given : noise(side), bytes, shape);
    return "";
  }

  // Empty, or what is wrong. Only this is timed.
  std::string run() {
    last_error.clear();
    auto result = module_.forward(input_);
    if (!result.ok()) return explained("cannot be run", result.error());
    answer_ = std::move(*result);
    return "";
  }

  // Nothing if the last answer is not one tensor of float32.
  std::optional<std::vector<double>> probabilities() const {
    if (answer_.size() != 1 || !answer_[0].isTensor()) return std::nullopt;
    const auto& tensor = answer_[0].toTensor();
    if (tensor.scalar_type() != ScalarType::Float) return std::nullopt;
    const float* values = tensor.const_data_ptr<float>();
    return std::vector<double>(values, values + tensor.numel());
  }

 private:
  static size_t side_of(const std::vector<int32_t>& shape, bool bytes) {
    if (shape.size() != 4) return 0;
    const int32_t channels = bytes ? shape[3] : shape[1];
    const int32_t height = bytes ? shape[1] : shape[2];
    const int32_t width = bytes ? shape[2] : shape[3];
    return channels == 3 && height == width && height > 0 ? static_cast<size_t>(height) : 0;
  }

  void fill(const Picture& picture, bool bytes, std::vector<int32_t> shape) {
    // A program of any batch size tells its largest one.
    shape[0] = 1;
    if (bytes) {
      bytes_ = picture.bytes;
      input_ = executorch::extension::from_blob(bytes_.data(), std::move(shape), ScalarType::Byte);
    } else {
      floats_ = planes(picture);
      input_ = executorch::extension::from_blob(floats_.data(), std::move(shape), ScalarType::Float);
    }
  }

  Module module_;
  std::vector<uint8_t> bytes_;
  std::vector<float> floats_;
  TensorPtr input_;
  std::vector<executorch::runtime::EValue> answer_;
};

// Loading ----------------------------------------------------------------------------------------------------------

struct Subject {
  size_t index;
  std::unique_ptr<Model> model;
  std::vector<double> at_ms{};
  std::vector<double> ms{};
  std::vector<double> all_ms{};
};

// Loads and runs once; `took` becomes the members that say how long. Empty, or what is wrong.
std::string start_model(Model& model, const std::optional<Picture>& given, std::string& took) {
  const auto started = Clock::now();
  std::string fault = model.load();
  const auto loaded = Clock::now();
  if (fault.empty()) fault = model.prepare(given);
  const auto first = Clock::now();
  if (fault.empty()) fault = model.run();
  const auto ended = Clock::now();
  took = member("load_ms", number(milliseconds(loaded - started))) +
         member("first_ms", number(milliseconds(ended - first)));
  return fault;
}

// In a process that does nothing else, since the peak of its memory is that of all it ever did. Empty, or what is
// wrong.
std::string measure_cold(const std::string& path, const std::optional<Picture>& given) {
  Model model(path);
  std::string took;
  // Where it is allowed: starting the program is not to count.
  std::ofstream("/proc/self/clear_refs") << "5";
  const auto before = memory_kib("VmRSS");
  std::string fault = start_model(model, given, took);
  for (int runs = 1; runs < kColdRuns && fault.empty(); ++runs) fault = model.run();
  if (!fault.empty()) return fault;
  say("cold", index_member(0) + took + member("before_kib", number(before)) +
                  member("peak_kib", number(memory_kib("VmHWM"))) +
                  member("resident_kib", number(memory_kib("VmRSS"))));
  return "";
}

// Loads, runs once, and says how long both took and what came out. Empty, or what is wrong.
std::string open_model(Model& model, size_t index, const std::optional<Picture>& given) {
  std::string took;
  const std::string fault = start_model(model, given, took);
  if (!fault.empty()) return fault;
  const auto probabilities = model.probabilities();
  if (!probabilities) return "does not give one tensor of float32";
  say("loaded", index_member(index) + member("runtime", quoted("executorch " DSPKD_EXECUTORCH_VERSION)) + took);
  say("output", index_member(index) + member("probabilities", array(*probabilities)));
  return "";
}

std::optional<Picture> picture_of(const std::vector<Picture>& pictures, size_t index) {
  if (pictures.empty()) return std::nullopt;
  return pictures[pictures.size() == 1 ? 0 : index];
}

std::vector<Subject> open_all(const Settings& settings, const std::vector<Picture>& pictures) {
  std::vector<Subject> subjects;
  for (size_t index = 0; index < settings.models.size() && !stop_asked; ++index) {
    auto model = std::make_unique<Model>(settings.models[index]);
    const std::string fault = open_model(*model, index, picture_of(pictures, index));
    if (fault.empty()) {
      subjects.push_back({index, std::move(model)});
    } else {
      say_failed(index, settings.models[index] + " " + fault);
    }
  }
  return subjects;
}

// Measuring --------------------------------------------------------------------------------------------------------

void flush_times(Subject& subject, const std::string& members = "") {
  if (subject.ms.empty()) return;
  say("times", index_member(subject.index) + member("at_ms", array(subject.at_ms)) + member("ms", array(subject.ms)) +
                   members);
  subject.all_ms.insert(subject.all_ms.end(), subject.ms.begin(), subject.ms.end());
  subject.at_ms.clear();
  subject.ms.clear();
}

// Every subject once, from the one whose turn it is; what fails is taken out. Times are kept if `since` is given.
void run_round(std::vector<Subject>& subjects, size_t number_of_round, const std::optional<Clock::time_point>& since) {
  std::set<size_t> gone;
  for (size_t i = 0; i < subjects.size() && !stop_asked; ++i) {
    Subject& subject = subjects[(number_of_round + i) % subjects.size()];
    const auto before = Clock::now();
    const std::string fault = subject.model->run();
    const auto after = Clock::now();
    if (!fault.empty()) {
      flush_times(subject);
      say_failed(subject.index, fault);
      gone.insert(subject.index);
    } else if (since) {
      subject.at_ms.push_back(milliseconds(before - *since));
      subject.ms.push_back(milliseconds(after - before));
    }
    keep_in_touch();
  }
  subjects.erase(std::remove_if(subjects.begin(), subjects.end(),
                                [&](const Subject& subject) { return gone.count(subject.index) > 0; }),
                 subjects.end());
}

bool is_steady(const std::vector<double>& rounds) {
  if (rounds.size() < 2 * kSteadyWindow) return true;
  const auto median_of = [](auto first) {
    std::vector<double> window(first, first + kSteadyWindow);
    std::sort(window.begin(), window.end());
    return window[kSteadyWindow / 2];
  };
  return median_of(rounds.end() - kSteadyWindow) >= (1.0 - kSteadyChange) * median_of(rounds.end() - 2 * kSteadyWindow);
}

// Until the time of a round no longer falls; at most ten times as many rounds as asked for.
void warm_up(std::vector<Subject>& subjects, size_t asked) {
  std::vector<double> rounds;
  while (rounds.size() < 10 * asked && !stop_asked && !subjects.empty()) {
    if (rounds.size() >= asked && is_steady(rounds)) return;
    const auto before = Clock::now();
    run_round(subjects, rounds.size(), std::nullopt);
    rounds.push_back(milliseconds(Clock::now() - before));
  }
}

// Rank (1 is the smallest) among n sorted latencies that the true p90 stays under with kConfidence; 0 if n is too
// small. agent.py says more.
size_t early_stopping_rank(size_t n) {
  double tail = 0.0;
  size_t rank = 0;
  for (size_t over = 0; over < n; ++over) {
    const auto all = static_cast<double>(n), above = static_cast<double>(over);
    tail += std::exp(std::lgamma(all + 1) - std::lgamma(above + 1) - std::lgamma(all - above + 1) +
                     above * std::log(1 - kPercentile) + (all - above) * std::log(kPercentile));
    if (tail > 1.0 - kConfidence) break;
    rank = n - over;
  }
  return rank;
}

bool p90_is_known(std::vector<double> times_ms, double precision) {
  const size_t rank = early_stopping_rank(times_ms.size());
  if (rank == 0) return false;
  std::sort(times_ms.begin(), times_ms.end());
  const auto place = static_cast<size_t>(std::ceil(kPercentile * static_cast<double>(times_ms.size())));
  return times_ms[rank - 1] <= times_ms[place - 1] * (1.0 + precision);
}

// Whether everything is known precisely enough; asked again only after a fifth more rounds, so that the chance to stop
// by luck stays small.
bool is_known(std::vector<Subject>& subjects, long round, double precision, long& look_at) {
  if (round < look_at) return false;
  look_at = static_cast<long>(std::ceil(1.2 * static_cast<double>(round)));
  for (auto& subject : subjects) flush_times(subject);
  return std::all_of(subjects.begin(), subjects.end(),
                     [&](const Subject& subject) { return p90_is_known(subject.all_ms, precision); });
}

void take_turns(std::vector<Subject>& subjects, const Settings& settings, Clock::time_point started) {
  auto said = started;
  long look_at = settings.min_rounds;
  for (long round = 0; round < settings.max_rounds && !stop_asked && !subjects.empty(); ++round) {
    const auto now = Clock::now();
    if (round >= settings.min_rounds && milliseconds(now - started) >= settings.seconds * 1e3) break;
    if (settings.precision && is_known(subjects, round, *settings.precision, look_at)) break;
    if (milliseconds(now - said) >= kStateSeconds * 1e3) {
      for (auto& subject : subjects) flush_times(subject);
      say_state(milliseconds(now - started), "rounds");
      said = Clock::now();
    }
    run_round(subjects, static_cast<size_t>(round), started);
  }
  for (auto& subject : subjects) flush_times(subject);
}

// A pause, and then one call after the other.
void sustain(Subject& subject, const Settings& settings, Clock::time_point since) {
  const auto index = index_member(subject.index), phase = member("phase", quoted("sustained"));
  const double idle_from = milliseconds(Clock::now() - since);
  const double until = idle_from + 1e3 * settings.pause;
  for (double now = idle_from; now < until && !stop_asked; now = milliseconds(Clock::now() - since)) {
    usleep(static_cast<useconds_t>(1e3 * std::min(kStateSeconds * 1e3, until - now)));
    say_state(milliseconds(Clock::now() - since), "idle", index);
  }
  const double started = milliseconds(Clock::now() - since);
  for (double said = started, now = started; now - started < settings.sustained * 1e3 && !stop_asked;) {
    const double before = milliseconds(Clock::now() - since);
    const std::string fault = subject.model->run();
    now = milliseconds(Clock::now() - since);
    if (!fault.empty()) return say_failed(subject.index, fault);
    subject.at_ms.push_back(before);
    subject.ms.push_back(now - before);
    if (now - said >= kStateSeconds * 1e3) {
      flush_times(subject, phase);
      say_state(now, "sustained", index);
      said = milliseconds(Clock::now() - since);
    }
  }
  flush_times(subject, phase);
  if (!stop_asked) say("sustained", index + member("idle_ms", array(std::vector<double>{idle_from, started})));
}

void measure(std::vector<Subject>& subjects, const Settings& settings) {
  say_state(0.0, "before");
  warm_up(subjects, static_cast<size_t>(settings.warmup));
  const auto started = Clock::now();
  // On the clock that other programs have too: whoever reads power sensors meanwhile tells its times by it.
  const auto since_boot = std::chrono::duration_cast<std::chrono::nanoseconds>(started.time_since_epoch());
  say("began", member("monotonic_ns", std::to_string(since_boot.count())));
  take_turns(subjects, settings, started);
  say_state(milliseconds(Clock::now() - started), "after");
  if (settings.sustained == 0.0) return;
  for (auto& subject : subjects) {
    if (!stop_asked) sustain(subject, settings, started);
  }
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  // A lost connection shows as a hang-up or a broken pipe; `say` then ends the program.
  action.sa_handler = SIG_IGN;
  sigaction(SIGHUP, &action, nullptr);
  sigaction(SIGPIPE, &action, nullptr);
}

// A lock on the folder that work folders lie in, the same as agent.py's, so that two measurements never share the
// device. It leaves no file behind and goes with the process.
bool have_the_device() {
  const int folder = open("..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return folder >= 0 && flock(folder, LOCK_EX | LOCK_NB) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = read_arguments({argv + 1, argv + argc});
  std::vector<Picture> pictures;
  for (const auto& path : settings.inputs) pictures.push_back(read_picture(path));
  catch_signals();
  // What started it watches over it, and nobody else would end it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_errors, __FILE__));
  // XNNPACK takes the pool's size when a program is loaded.
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool) pool->_unsafe_reset_threadpool(static_cast<uint32_t>(settings.threads));
  say_start();
  if (!have_the_device()) {
    say("busy", member("message", quoted("another dspkd bench is running there")));
    return 0;
  }
  if (settings.cold) {
    const std::string fault = measure_cold(settings.models[0], picture_of(pictures, 0));
    if (!fault.empty()) say_failed(0, settings.models[0] + " " + fault);
    say("end");
    return fault.empty() ? 0 : kNothingRan;
  }
  auto subjects = open_all(settings, pictures);
  if (!subjects.empty()) measure(subjects, settings);
  say("end");
  return subjects.empty() && !stop_asked ? kNothingRan : 0;
}
