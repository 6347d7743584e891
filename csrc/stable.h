// The LibTorch stable ABI: one library built against any torch >= 2.11 runs on every torch >= 2.11.
#pragma once

// Set here and not on the command line, where pybind11 as bundled with torch 2.11 refuses it.
#define TORCH_TARGET_VERSION 0x020b000000000000ULL

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
