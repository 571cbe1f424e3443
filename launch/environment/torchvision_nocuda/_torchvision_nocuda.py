"""Let the registry's CUDA-linked torchvision import beside a CPU-only torch.

Its _C.so cannot be loaded (libtorch_cuda.so is absent), so the operator schemas that
torchvision._meta_registrations registers fakes for do not exist and the import dies.
Declaring the two schemas first is enough: transforms, v2.functional and tv_tensors are
pure Python on torch and work; torchvision.ops.* (nms, roi_align) still raise, as they
do in any torchvision without C++ ops. No torch import happens at interpreter start.
"""
import sys

class _Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            import torch
            from torchvision import extension
            if not extension._has_ops():
                lib = torch.library.Library("torchvision", "FRAGMENT")
                lib.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                lib.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                extension._nocuda_lib = lib            # keep alive
        return None

sys.meta_path.insert(0, _Hook())
