// The pybind11 module _C: what was compiled in. Importing it registers the ops. No torch headers.
#include <pybind11/pybind11.h>

#ifndef SK_CUDA_ARCHS
#define SK_CUDA_ARCHS ""
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of seqkernels; importing it registers torch.ops.seqkernels.";
#ifdef SK_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("cuda_archs") = SK_CUDA_ARCHS;
  m.attr("compiler") = __VERSION__;
}
