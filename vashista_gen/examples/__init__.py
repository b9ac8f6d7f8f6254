"""Programs to read, run and copy from: `python -m vashista_gen.examples.<name>`. The tests run every one.

| example       | shows                                                                    | needs             |
| ------------- | ------------------------------------------------------------------------ | ----------------- |
| ten_lines     | the op on raw tensors                                                    | torch             |
| generate_text | a transformers model that writes through a sparse op                     | the demo's extras |
| copy_package  | a generated package inside a program that has no vashista_gen            | torch             |
| compile_step  | torch.compile(fullgraph=True) over a decode step, once for all lengths   | torch             |
| cuda_graph    | that step captured once, replayed while lengths grow                     | a CUDA device     |

Contains: short programs over public names, each with a `main`.
Must not contain: anything that another module imports, except one example another.
"""
