// torch's switch for TF32 in recurrent layers, read at call time: it lives in Python alone
// (torch.backends.cudnn.rnn.fp32_precision), and torch's stable ABI does not pass it on.
#include <Python.h>

#include "cuda/launch.h"

namespace seqkernels {

bool tf32_allowed() {
  if (!Py_IsInitialized()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  // The module lives as long as the process.
  static PyObject* rnn = nullptr;
  if (rnn == nullptr) {
    PyObject* cudnn = PyImport_ImportModule("torch.backends.cudnn");
    if (cudnn != nullptr) rnn = PyObject_GetAttrString(cudnn, "rnn");
    Py_XDECREF(cudnn);
  }
  PyObject* value = rnn == nullptr ? nullptr : PyObject_GetAttrString(rnn, "fp32_precision");
  const bool allowed = value != nullptr && PyUnicode_Check(value) &&
                       PyUnicode_CompareWithASCIIString(value, "tf32") == 0;
  Py_XDECREF(value);
  PyErr_Clear();
  PyGILState_Release(state);
  return allowed;
}

}  // namespace seqkernels
