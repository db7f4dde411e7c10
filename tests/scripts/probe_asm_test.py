"""The probes of CPU and GPU count what their machine code does.

A compiler may merge sums that are alike, hoist a product out of the loop or spill a register, and a limit that is then too
high or too low makes every share wrong. So each loop of src/backends/cpu/probe_loops.cpp is looked up in the program and its hot
loop must hold exactly the loads or products that the table of that file counts, each product with a sum of its own, no
stack, no call and little else. The same for src/backends/cuda/probe_loops.cu, for every architecture in the program.

PROA_BINARY names the program (default build/release/apps/proa). Skipped without nm and objdump (OBJDUMP, NM name others),
and for builds that are not of type Release or have sanitizers; the part for GPUs without cuobjdump (CUOBJDUMP names another) or
in a program without CUDA.
"""
import os
import pathlib
import re
import shutil
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = pathlib.Path(os.environ.get("PROA_BINARY", ROOT / "build/release/apps/proa"))
SOURCE = ROOT / "src/backends/cpu/probe_loops.cpp"
OBJDUMP, NM = os.environ.get("OBJDUMP", "objdump"), os.environ.get("NM", "nm")
CUDA_SOURCE = ROOT / "src/backends/cuda/probe_loops.cu"
CUOBJDUMP = os.environ.get("CUOBJDUMP", "cuobjdump")

# name: the instructions that an iteration must hold equally often, their operations, and how many others there may be beside
# the counter and the jump
PRODUCTS = {
    "f32_plain": (("mulps", "addps"), 8, 8),  # SSE has two operands: a copy each
    "f32_avx2": (("vfmadd231ps ymm",), 16, 0),
    "f32_avx512": (("vfmadd231ps zmm",), 32, 0),
    "int8_avx2": (("vpmaddubsw ymm", "vpmaddwd ymm", "vpaddd ymm"), 64, 0),
    "int8_avxvnni": (("vpdpbusd ymm",), 64, 0),
    "int8_avx512": (("vpdpbusd zmm",), 128, 0),
    "int8_amx": (("tdpbssd",), 2 * 16 * 16 * 64, 0),
    "bf16_avx512": (("vdpbf16ps zmm",), 64, 0),
    "bf16_amx": (("tdpbf16ps",), 2 * 16 * 16 * 32, 0),
    "f32_neon": (("fmla",), 8, 0),
    "int8_dotprod": (("sdot",), 32, 0),
    "int8_i8mm": (("smmla",), 64, 0),
    "bf16_mmla": (("bfmmla",), 32, 0),
}
COUNTER = 3  # subtract, compare, jump
# The same of a warp, and whether the sums are one: products of a warpgroup write all its registers, in order. Products of
# tensor cores take 8 to 128 cycles, so others between them cost nothing.
CUDA_PRODUCTS = {
    "f32_ffma": ("FFMA", 2 * 32, 2, False),
    "bf16_mma": ("HMMA.16816.F32.BF16", 2 * 16 * 8 * 16, 24, False),
    "int8_mma": ("IMMA.16832.S8.S8", 2 * 16 * 8 * 32, 24, False),
    "bf16_wgmma": ("HGMMA.64x256x16.F32.BF16", 2 * 64 * 256 * 16 // 4, 64, True),
    "int8_wgmma": ("IGMMA.64x256x32.S8.S8", 2 * 64 * 256 * 32 // 4, 64, True),
}
WIDTHS = {"zmm": 64, "ymm": 32, "xmm": 16}


def skip_reason():
    if not shutil.which(OBJDUMP) or not shutil.which(NM):
        return "objdump and nm are not installed"
    if not PROA.exists():
        raise AssertionError(f"{PROA} is not there: build it, or set PROA_BINARY")
    cache = PROA.parent.parent / "CMakeCache.txt"
    settings = cache.read_text() if cache.exists() else "CMAKE_BUILD_TYPE:STRING=Release\n"
    if "CMAKE_BUILD_TYPE:STRING=Release\n" not in settings or re.search(r"^PROA_SANITIZE:\w+=.", settings, re.MULTILINE):
        return "not a release build"
    return None


def symbols():
    """{"read_avx512<4, 1024>": mangled name}"""
    found = {}
    for line in subprocess.run([NM, PROA], capture_output=True, text=True, check=True).stdout.splitlines():
        match = re.search(r"(_ZN4proa10probe_loop\d+([a-z]\w*?)(?:I((?:Li\d+E)+)E)?E[lm]\w*)$", line)
        if match and match.group(2) != "fold_bytes":
            numbers = re.findall(r"Li(\d+)E", match.group(3) or "")
            found[match.group(2) + (f"<{', '.join(numbers)}>" if numbers else "")] = match.group(1)
    return found


def disassemble(symbol):
    """[(address, mnemonic, operands)] of one function."""
    text = subprocess.run([OBJDUMP, "-d", "--no-show-raw-insn", f"--disassemble={symbol}", PROA], capture_output=True,
                          text=True, check=True).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\t(?:\{vex\} )?(\S+)[ \t]*(.*)", text, re.MULTILINE)
    return [(int(address, 16), name, re.split(r"\s*(?:<|//|# )", operands)[0].strip()) for address, name, operands in lines]


def loops(code):
    """Innermost loops: what lies between the target of a jump back and the jump."""
    spans = []
    for i, (address, name, operands) in enumerate(code):
        if re.match(r"j|b\.|cb|tb|b$", name):
            target = re.search(r"(?:0x)?([0-9a-f]+)$", operands)
            first = next((k for k in range(i) if target and code[k][0] == int(target.group(1), 16)), None)
            if first is not None:
                spans.append((first, i + 1))
    return [code[a:b] for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]


def is_instruction(line, wanted):
    name, _, register = wanted.partition(" ")
    _, mnemonic, operands = line
    return mnemonic.split()[-1] == name and register in operands


def written(line):
    """The register that an instruction writes: last in AT&T, first on Arm."""
    operands = [part.strip() for part in line[2].split(",")]
    return operands[-1] if "%" in line[2] else operands[0]


def bytes_loaded(line):
    _, name, operands = line
    if name.startswith(("prefetch", "prfm")):
        return 0
    if "%" in operands:
        width = next((bytes for register, bytes in WIDTHS.items() if register in operands), 0)
        return width if "(" in operands else 0
    if name in ("ldr", "ldur", "ldp"):
        return 16 * len(re.findall(r"\bq\d+", operands))
    return 0


def touches_stack(line):
    return re.search(r"%rsp|%rbp|\bsp\b", line[2]) is not None


class ProbeLoops(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if reason := skip_reason():
            raise unittest.SkipTest(reason)
        cls.symbols = symbols()
        cls.source = SOURCE.read_text()

    def hot_loop(self, name, weight):
        code = disassemble(self.symbols[name])
        found = loops(code)
        self.assertTrue(found, f"{name} has no loop")
        hot = max(found, key=lambda loop: sum(map(weight, loop)))
        shown = "\n".join(f"  {address:x}: {mnemonic} {operands}" for address, mnemonic, operands in hot)
        self.assertFalse([line for line in hot if touches_stack(line)], f"{name} uses the stack:\n{shown}")
        self.assertFalse([line for line in hot if line[1].startswith(("call", "bl"))], f"{name} calls:\n{shown}")
        return hot, shown

    def test_every_loop_of_the_source_is_in_the_program(self):
        in_table = set(re.findall(r'(?:read|compute)\((?:[^",]+, )?"([^"]+)"', self.source))
        self.assertTrue(in_table)
        self.assertGreaterEqual(len(self.symbols), 4)
        self.assertEqual(set(self.symbols) - in_table, set(), "loops that no row of the table counts")

    def test_products(self):
        rows = re.findall(r'compute\([^,]+, "(\w+)", Probe::\w+, ([\d* ]+),', self.source)
        self.assertEqual({name for name, _ in rows}, set(PRODUCTS))
        seen = 0
        for name, work in rows:
            if name not in self.symbols:
                continue  # of another architecture
            seen += 1
            with self.subTest(name):
                instructions, operations, others = PRODUCTS[name]
                hot, shown = self.hot_loop(name, lambda line: is_instruction(line, instructions[-1]))
                count = sum(is_instruction(line, instructions[-1]) for line in hot)
                self.assertEqual(count * operations, eval(work), f"{name} counts {work}:\n{shown}")
                for wanted in instructions:
                    self.assertEqual(sum(is_instruction(line, wanted) for line in hot), count, f"{wanted}:\n{shown}")
                sums = {written(line) for line in hot if is_instruction(line, instructions[-1])}
                self.assertEqual(len(sums), count, f"sums are shared:\n{shown}")
                self.assertFalse([line for line in hot if "(" in line[2] or "[" in line[2]], f"memory is used:\n{shown}")
                self.assertLessEqual(len(hot), count * len(instructions) + others + COUNTER, shown)
        self.assertGreaterEqual(seen, 1)

    def test_reads(self):
        rows = dict(re.findall(r'read\("([^"]+)", (\d+),', self.source))
        seen = 0
        for name, count in rows.items():
            if name not in self.symbols:
                continue
            seen, count = seen + 1, int(count)
            with self.subTest(name):
                streams, ahead = map(int, re.findall(r"\d+", name.split("<")[1]))
                hot, shown = self.hot_loop(name, bytes_loaded)
                loads = [line for line in hot if bytes_loaded(line)]
                self.assertEqual(sum(map(bytes_loaded, loads)), count, f"bytes per iteration:\n{shown}")
                step = count // streams
                advance = re.compile(rf"\$0x{step:x},|\$0x{2**64 - step:x},|#0x{step:x}\b|\]\s*,\s*#{step}\b")
                self.assertTrue([line for line in hot if advance.search(line[2])], f"no step of {step} bytes:\n{shown}")
                fetches = sum(line[1].startswith(("prefetch", "prfm")) for line in hot)
                self.assertEqual(fetches, count // 64 if ahead else 0, f"lines fetched ahead:\n{shown}")
                # Loads, a xor for each, fetches, and a pointer and an index per stream.
                vectors = sum(line[2].count("q") if "%" not in line[2] else 1 for line in loads)
                self.assertLessEqual(len(hot), 2 * vectors + fetches + 3 * streams + COUNTER, shown)
        self.assertGreaterEqual(seen, 3)


def cuda_symbol(kernel):
    """f32_ffma<8, 32>, as the compiler spells it"""
    name, arguments = re.fullmatch(r"(\w+)<(.*)>", kernel).groups()
    codes = "".join({"true": "Lb1E", "false": "Lb0E"}.get(a, f"Li{a}E") for a in arguments.split(", "))
    return f"_ZN4proa4cuda10probe_loop{len(name)}{name}I{codes}EEviPj"


def cuda_code(symbols):
    """{(architecture, symbol): [(address, mnemonic, operands)]}"""
    text = subprocess.run([CUOBJDUMP, "-sass", "-fun", ",".join(symbols), PROA], capture_output=True, text=True, check=True).stdout
    found, architecture, code = {}, "", []
    for line in text.splitlines():
        if match := re.match(r"\s*code for (sm_\w+)|arch = (sm_\w+)", line):
            architecture = match.group(1) or match.group(2)
        elif match := re.match(r"\s*Function : (\w+)", line):
            code = found[architecture, match.group(1)] = []
        elif match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?(\S+)\s*(.*?) *;", line):
            code.append((int(match.group(1), 16), match.group(2), match.group(3)))
    return found


def cuda_loops(code):
    """Innermost loops, as loops() finds them."""
    at = {address: i for i, (address, _, _) in enumerate(code)}
    spans = []
    for i, (_, name, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)$", operands) if name.startswith("BRA") else None
        first = at.get(int(target.group(1), 16)) if target else None
        if first is not None and first < i:  # code ends with a jump to itself
            spans.append((first, i + 1))
    return [code[a:b] for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]


class CudaProbeLoops(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not PROA.exists():
            raise AssertionError(f"{PROA} is not there: build it, or set PROA_BINARY")
        if b".nv_fatbin" not in PROA.read_bytes():
            raise unittest.SkipTest("built without CUDA")
        if not shutil.which(CUOBJDUMP):
            raise unittest.SkipTest("cuobjdump is not installed")
        cls.rows = re.findall(r"\{Probe::\w+, (\w+<[\w, ]+>), (\d+), ([\d* ]+), \d+\}", CUDA_SOURCE.read_text())
        cls.code = cuda_code([cuda_symbol(kernel) for kernel, _, _ in cls.rows])

    def test_products(self):
        self.assertEqual({kernel.split("<")[0] for kernel, _, _ in self.rows}, set(CUDA_PRODUCTS))
        architectures = {architecture for architecture, _ in self.code}
        self.assertTrue(architectures)
        for architecture in architectures:
            for kernel, products, operations in self.rows:
                instruction, each, others, one_sum = CUDA_PRODUCTS[kernel.split("<")[0]]
                if instruction[1:].startswith("GMMA") and architecture != "sm_90a":
                    continue
                with self.subTest(kernel, architecture=architecture):
                    found = cuda_loops(self.code[architecture, cuda_symbol(kernel)])
                    self.assertTrue(found, "no loop")
                    hot = max(found, key=lambda loop: sum(line[1] == instruction for line in loop))
                    shown = "\n".join(f"  {address:x}: {name} {operands}" for address, name, operands in hot)
                    mine = [line for line in hot if line[1] == instruction]
                    self.assertEqual((len(mine), each), (int(products), eval(operations)), shown)
                    sums, apart = [written(line) for line in mine], 1 if one_sum else int(re.search(r"\d+", kernel.split("<")[1])[0])
                    for i in range(len(sums) - apart + 1):
                        self.assertEqual(len(set(sums[i:i + apart])), apart, f"sums are shared:\n{shown}")
                    registers = [re.findall(r"\bR\d+", operands) for _, _, operands in mine]
                    if instruction != "FFMA":  # it grows by what it was
                        self.assertFalse([r for r in registers if r[0] != r[-1]], shown)
                    self.assertFalse([line for line in hot if re.match(r"LD|ST", line[1])], f"memory is used:\n{shown}")
                    self.assertLessEqual(len(hot), int(products) + others + COUNTER, shown)


if __name__ == "__main__":
    unittest.main()
