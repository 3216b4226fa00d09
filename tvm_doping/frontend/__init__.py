"""From PyTorch to Relax: `import_model` takes an nn.Module or an ExportedProgram."""

from __future__ import annotations

from tvm_doping.frontend.head import headed
from tvm_doping.frontend.importer import Imported, import_model
from tvm_doping.frontend.reference import Reference
from tvm_doping.frontend.signature import Signature, Tensor

__all__ = ["Imported", "Reference", "Signature", "Tensor", "headed", "import_model"]
