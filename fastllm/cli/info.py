"""fastllm info: what is installed, and which kernel serves which op and why."""

from jsonargparse import Namespace

from fastllm.cli.parser import Parser


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="What is installed, and which kernel serves which op and why.")
    commands.add_subcommand("info", parser, help="what is installed, and which kernel serves which op")


def run(arguments: Namespace) -> int:
    """Print what is installed and which kernel serves which op."""
    import torch
    from rich.console import Console
    from rich.padding import Padding

    from fastllm import ops

    console = Console()
    facts = ops.build_info()
    rows = {
        "fastllm": facts["version"],
        "torch": f"{facts['torch']} (built against {facts['torch_at_build']})",
        "CPU capability": f"{facts['cpu_capability']}: {facts['cpu_capability_reason']}",
        "CPU bfloat16": facts["bfloat16"],
        "threads": str(torch.get_num_threads()),
        "CUDA kernels": f"{facts['cuda']}: {facts['cuda_reason']}",
        "compiler": facts["compiler"],
    }
    for name, value in rows.items():
        console.print(f"{name:>15}  {value}", highlight=False, soft_wrap=True)
    served: dict[tuple[str, str, str], list[str]] = {}
    for row in ops.report():
        served.setdefault((row["device"], row["kernel"], row["why"]), []).append(row["op"])
    for (device, kernel, why), names in sorted(served.items()):
        title = f"Ops without a kernel on {device}" if kernel == "none" else f"Ops on {device}: {kernel}"
        console.print(f"\n{title}, {why}", highlight=False)
        console.print(Padding(", ".join(names), (0, 0, 0, 4)), highlight=False)
    return 0
