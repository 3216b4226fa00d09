// Reads a bundle (docs/bundle.md) with nothing but the C++ library and TVM's runtime. Whatever does not fit throws
// std::runtime_error before any of the bundle's code is loaded. Sizes, shapes and types are checked; the sha256 of the files
// are not: `tvm-doping inspect --verify` does that where a bundle is copied from.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace doping {

namespace ffi = tvm::ffi;
using ffi::Tensor;
using Object = ffi::json::Object;
using List = ffi::json::Array;

[[noreturn]] inline void refuse(const std::string& what) { throw std::runtime_error(what); }

// Memory of tensors at multiples of 64 bytes: the kernels load whole vectors.
struct Aligned {
  void AllocData(DLTensor* tensor) {
    size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    if (tensor->data == nullptr) refuse("no memory for a tensor of " + std::to_string(bytes) + " bytes");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

inline Tensor empty(const std::vector<int64_t>& shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(Aligned(), ffi::Shape(shape), dtype, DLDevice{kDLCPU, 0});
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf())) refuse(path + ": cannot be read");
  return content.str();
}

// The value of a JSON object's field, of that type.
template <typename T>
T field(const Object& object, const char* name) {
  auto found = object.find(ffi::String(name));
  if (found == object.end()) refuse(std::string("no field ") + name);
  return (*found).second.template cast<T>();
}

inline std::string text(const Object& object, const char* name) { return std::string(field<ffi::String>(object, name)); }

inline Object parse_object(const std::string& json, const std::string& where) {
  ffi::String error;
  ffi::json::Value value = ffi::json::Parse(json, &error);
  if (!error.empty()) refuse(where + ": " + std::string(error));
  return value.cast<Object>();
}

struct Dtype {
  const char *name, *stored;  // as bundle.json and as safetensors call it
  DLDataType type;
};

inline const Dtype& dtype_of(const std::string& name) {
  static const Dtype known[] = {
      {"float16", "F16", {kDLFloat, 16, 1}}, {"float32", "F32", {kDLFloat, 32, 1}}, {"float64", "F64", {kDLFloat, 64, 1}},
      {"int8", "I8", {kDLInt, 8, 1}},        {"int16", "I16", {kDLInt, 16, 1}},     {"int32", "I32", {kDLInt, 32, 1}},
      {"int64", "I64", {kDLInt, 64, 1}},     {"uint8", "U8", {kDLUInt, 8, 1}},      {"uint16", "U16", {kDLUInt, 16, 1}},
      {"uint32", "U32", {kDLUInt, 32, 1}},   {"uint64", "U64", {kDLUInt, 64, 1}},   {"bool", "BOOL", {kDLBool, 8, 1}}};
  for (const Dtype& row : known)
    if (name == row.name) return row;
  refuse("no such dtype: " + name);
}

// The arrays that a variant lists (name, key, shape, dtype), out of a safetensors file: 8 bytes with the length of the header, the
// header in JSON, the data. https://huggingface.co/docs/safetensors
inline std::map<std::string, Tensor> read_tensors(const std::string& path, const List& listed,
                                                  std::vector<std::string>* order = nullptr) {
  const std::string content = read_file(path);
  uint64_t length = 0;
  if (content.size() < 8) refuse(path + ": shorter than its header");
  std::memcpy(&length, content.data(), 8);
  if (length > content.size() - 8) refuse(path + ": shorter than its header");
  const Object header = parse_object(content.substr(8, length), path);
  const char* data = content.data() + 8 + length;
  const uint64_t bytes = content.size() - 8 - length;
  std::map<std::string, Tensor> found;
  for (const ffi::Any& any : listed) {
    const Object wanted = any.cast<Object>();
    const std::string name = text(wanted, "name"), key = text(wanted, "key"), where = path + ": " + key;
    auto stored_any = header.find(ffi::String(key));
    if (stored_any == header.end()) refuse(where + ": not there");
    const Object stored = (*stored_any).second.cast<Object>();
    const Dtype& dtype = dtype_of(text(wanted, "dtype"));
    const List shape_wanted = field<List>(wanted, "shape"), shape = field<List>(stored, "shape");
    bool same = text(stored, "dtype") == dtype.stored && shape.size() == shape_wanted.size();
    std::vector<int64_t> dims;
    uint64_t size = dtype.type.bits / 8;
    for (size_t i = 0; same && i < shape.size(); ++i) {
      const int64_t dim = shape[i].cast<int64_t>();
      same = dim == shape_wanted[i].cast<int64_t>() && dim >= 0;
      if (same && __builtin_mul_overflow(size, static_cast<uint64_t>(dim), &size)) same = false;
      dims.push_back(dim);
    }
    const List offsets = field<List>(stored, "data_offsets");
    if (!same || offsets.size() != 2) refuse(where + ": not of the shape and dtype that bundle.json lists");
    const int64_t begin = offsets[0].cast<int64_t>(), end = offsets[1].cast<int64_t>();
    if (begin < 0 || end < begin || static_cast<uint64_t>(end) > bytes || static_cast<uint64_t>(end - begin) != size)
      refuse(where + ": its data is not in the file");
    Tensor tensor = empty(dims, dtype.type);
    std::memcpy(tensor.data_ptr(), data + begin, size);
    if (!found.emplace(name, tensor).second) refuse(where + ": listed twice");
    if (order != nullptr) order->push_back(name);
  }
  return found;
}

// What this CPU can do, in the words of /proc/cpuinfo.
inline std::set<std::string> cpu_features() {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> features;
  for (std::string line; features.empty() && std::getline(file, line);)
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      for (std::string word; words >> word;) features.insert(word);
    }
  return features;
}

class Bundle {
 public:
  // target: of a bundle for several, the one whose code to run; "" the first, which is the best, that this CPU can run.
  explicit Bundle(const std::string& folder, const std::string& target = "") {
    document = parse_object(read_file(folder + "/bundle.json"), folder + "/bundle.json");
    if (field<int64_t>(document, "format_version") != 2) refuse(folder + ": not of format version 2; compile it anew");
    choose(target);
    const std::string library = text(variant, "library");
    if (library.find('/') != std::string::npos) refuse(folder + ": a library elsewhere");
    std::vector<std::string> order;
    const auto arrays = read_tensors(folder + "/weights.safetensors", field<List>(variant, "weights"), &order);
    for (const std::string& name : order) weights.push_back(arrays.at(name));
    golden = read_tensors(folder + "/golden.safetensors", field<List>(variant, "golden"));
    // From here on the bundle's code is in this process.
    ffi::Module executable = ffi::Module::LoadFromFile(folder + "/" + library);
    if (auto install = executable->GetFunction("doping_install", true); install.has_value()) (*install)();
    const auto machine = executable->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    constexpr int kPooled = 2;  // the allocator that keeps freed blocks for the next call
    machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooled);
    main_ = machine->GetFunction("main").value();
    keep = machine;
  }

  // main(*inputs, *state, weights) -> (*outputs, *new state). Every array must have the shape that bundle.json gives it.
  std::vector<Tensor> operator()(const std::vector<Tensor>& inputs, const std::vector<Tensor>& state) const {
    std::map<std::string, int64_t> sizes;  // of T and N
    check("inputs", inputs, &sizes);
    check("state", state, &sizes);
    std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
    arguments.insert(arguments.end(), state.begin(), state.end());
    arguments.emplace_back(weights);
    ffi::Any result;
    main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    const auto tensors = result.cast<ffi::Array<Tensor>>();
    return {tensors.begin(), tensors.end()};
  }

  std::string target() const { return text(field<Object>(variant, "target"), "name"); }
  double tolerance() const { return field<double>(variant, "tolerance"); }

  // The names of a group of bundle.json: "inputs", "state", "outputs".
  std::vector<std::string> names(const char* group) const {
    std::vector<std::string> found;
    for (const ffi::Any& spec : field<List>(document, group)) found.push_back(text(spec.cast<Object>(), "name"));
    return found;
  }

  Object document, variant;
  std::map<std::string, Tensor> golden;  // "input.NAME", "state.NAME", "output.NAME", "new_state.NAME"

 private:
  void choose(const std::string& wanted) {
    const std::set<std::string> here = cpu_features();
    std::string lacking;
    for (const ffi::Any& any : field<List>(document, "variants")) {
      const Object one = any.cast<Object>(), target = field<Object>(one, "target");
      std::string missing;
      for (const ffi::Any& feature : field<List>(target, "features"))
        if (!here.count(std::string(feature.cast<ffi::String>()))) missing += " " + std::string(feature.cast<ffi::String>());
      if ((wanted.empty() || wanted == text(target, "name")) && missing.empty()) {
        variant = one;
        return;
      }
      lacking += "; " + text(target, "name") + " needs" + (missing.empty() ? " to be named" : missing);
    }
    refuse("no code for this CPU" + lacking);
  }

  void check(const char* group, const std::vector<Tensor>& given, std::map<std::string, int64_t>* sizes) const {
    const List specs = field<List>(document, group);
    if (specs.size() != given.size()) refuse(std::string(group) + ": another number of arrays");
    for (size_t i = 0; i < given.size(); ++i) {
      const Object spec = specs[i].cast<Object>();
      const List shape = field<List>(spec, "shape");
      const DLDataType dtype = dtype_of(text(spec, "dtype")).type, got = given[i].dtype();
      bool fits = shape.size() == static_cast<size_t>(given[i].ndim()) && got.code == dtype.code && got.bits == dtype.bits &&
                  got.lanes == 1 && given[i].IsContiguous();
      for (size_t d = 0; fits && d < shape.size(); ++d) {
        const int64_t dim = given[i].size(static_cast<int64_t>(d));
        const auto symbol = shape[d].try_cast<ffi::String>();
        const int64_t size =
            symbol.has_value() ? sizes->emplace(std::string(*symbol), dim).first->second : shape[d].cast<int64_t>();
        fits = dim >= 1 && dim == size;
      }
      if (!fits) refuse(text(spec, "name") + ": not of the shape and dtype that bundle.json gives it");
      check_range(spec, given[i]);
    }
  }

  // A token outside its table: the compiled code does not look, it reads there.
  static void check_range(const Object& spec, const Tensor& tensor) {
    const auto found = spec.find(ffi::String("below"));
    if (found == spec.end() || (*found).second == nullptr) return;
    const int64_t below = (*found).second.cast<int64_t>();
    const bool wide = tensor.dtype().bits == 64;
    if (!wide && tensor.dtype().bits != 32) refuse(text(spec, "name") + ": tokens of 32 or 64 bits");
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      const int64_t value =
          wide ? static_cast<const int64_t*>(tensor.data_ptr())[i] : static_cast<const int32_t*>(tensor.data_ptr())[i];
      if (value < 0 || value >= below) refuse(text(spec, "name") + ": a token outside its table");
    }
  }

  ffi::Array<Tensor> weights;
  ffi::Any keep;  // the virtual machine that main_ is a function of
  ffi::Function main_;
};

}  // namespace doping
