// Runs a bundle's golden input and compares with its golden output: run_bundle BUNDLE [TARGET]
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bundle.h"

namespace {

using doping::Tensor;

// The golden arrays of a group, e.g. "input", by the names that bundle.json lists.
std::vector<Tensor> golden(const doping::Bundle& bundle, const std::string& group, const char* listed) {
  std::vector<Tensor> found;
  for (const std::string& name : bundle.names(listed)) {
    auto at = bundle.golden.find(group + "." + name);
    if (at == bundle.golden.end()) doping::refuse("no golden " + group + "." + name);
    found.push_back(at->second);
  }
  return found;
}

// The largest |got - wanted|; throws where it exceeds tolerance * max(1, max|wanted|). Indices must be equal.
double compare(const std::string& name, const Tensor& got, const Tensor& wanted, double tolerance) {
  bool same = got.ndim() == wanted.ndim() && got.dtype().code == wanted.dtype().code && got.dtype().bits == wanted.dtype().bits;
  for (int64_t d = 0; same && d < got.ndim(); ++d) same = got.size(d) == wanted.size(d);
  if (!same) doping::refuse(name + ": another shape or dtype than the golden one");
  if (got.dtype().code != kDLFloat || got.dtype().bits != 32) {
    if (std::memcmp(got.data_ptr(), wanted.data_ptr(), got.numel() * got.dtype().bits / 8) != 0)
      doping::refuse(name + ": other values than the golden ones");
    return 0;
  }
  const float *a = static_cast<const float*>(got.data_ptr()), *b = static_cast<const float*>(wanted.data_ptr());
  double error = 0, largest = 1;
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double off = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (std::isnan(off)) doping::refuse(name + ": a NaN is off the golden values");
    error = std::max(error, off);
    largest = std::max(largest, std::fabs(static_cast<double>(b[i])));
  }
  if (!(error <= tolerance * largest)) doping::refuse(name + ": " + std::to_string(error) + " off the golden values");
  return error;
}

}  // namespace

int main(int count, char** words) {
  if (count < 2 || count > 3) {
    std::fprintf(stderr, "usage: run_bundle BUNDLE [TARGET]\n");
    return 2;
  }
  try {
    const doping::Bundle bundle(words[1], count == 3 ? words[2] : "");
    const std::vector<Tensor> results = bundle(golden(bundle, "input", "inputs"), golden(bundle, "state", "state"));
    std::vector<std::string> names = bundle.names("outputs");
    std::vector<Tensor> wanted = golden(bundle, "output", "outputs");
    for (const Tensor& tensor : golden(bundle, "new_state", "state")) wanted.push_back(tensor);
    for (const std::string& name : bundle.names("state")) names.push_back(name);
    if (results.size() != wanted.size()) doping::refuse("another number of results than bundle.json lists");
    double error = 0;
    for (size_t i = 0; i < results.size(); ++i) error = std::max(error, compare(names[i], results[i], wanted[i], bundle.tolerance()));
    std::printf("%s: golden output reproduced, at most %.2g off\n", bundle.target().c_str(), error);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_bundle: %s\n", error.what());
    return 1;
  }
}
