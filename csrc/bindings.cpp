// The Python module _C: importing it registers the operators; build_info() says what they were built with.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

namespace {

pybind11::dict build_info() {
  pybind11::list archs;
  std::istringstream names(VAMPO_CUDA_ARCHS);
  for (std::string name; names >> name;) archs.append(name);
  pybind11::dict info;
  info["torch_built"] = VAMPO_TORCH_BUILT;
  info["cuda"] = !archs.empty();
  info["cuda_archs"] = archs;
  info["compiler"] = VAMPO_COMPILER;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "What this library was built with.");
}
