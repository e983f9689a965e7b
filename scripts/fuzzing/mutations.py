"""Ways to spoil a file: each takes its bytes and a random generator, and gives other bytes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping

Mutation = Callable[[bytes, random.Random], bytes]
HUGE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def truncated(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw))]


def flipped(raw: bytes, draw: random.Random) -> bytes:
    """One to eight bits, most of them near the start, where the structure is."""
    changed = bytearray(raw)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(min(len(raw), 2000)) if draw.random() < 0.8 else draw.randrange(len(raw))
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def magic(raw: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"GGML", b"\0\0\0\0", b"FUGG", b"PK\3\4", draw.randbytes(4))) + raw[4:]


def huge_counts(raw: bytes, draw: random.Random) -> bytes:
    """The number of tensors or keys in a GGUF's start."""
    return _with(raw, draw.choice((8, 16)), draw.choice(HUGE))


def huge_number(raw: bytes, draw: random.Random) -> bytes:
    """Any eight bytes of the first 2,000: lengths, offsets, dimensions, types of arrays."""
    return _with(raw, draw.randrange(4, min(len(raw), 2000) - 8), draw.choice(HUGE))


def extended(raw: bytes, draw: random.Random) -> bytes:
    return raw + draw.randbytes(draw.choice((1, 31, 4096)))


def noise(raw: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 3, 24, 5000)))


def offsets(raw: bytes, draw: random.Random) -> bytes:
    """The offset of a tensor past the end or onto another: the last eight bytes of its description."""
    name = draw.choice((b"blk.0.ffn_up.weight", b"blk.1.ffn_down.weight", b"output_norm.weight"))
    place = raw.find(struct.pack("<Q", len(name)) + name)
    if place < 0:
        return flipped(raw, draw)
    dimensions = place + 8 + len(name)
    (count,) = struct.unpack_from("<I", raw, dimensions)
    return _with(raw, dimensions + 4 + 8 * min(count, 4) + 4, draw.choice((0, 32, 64, 7, len(raw), *HUGE)))


def metadata_bomb(raw: bytes, draw: random.Random) -> bytes:
    """One key in front of the others: a huge array or string, or arrays in arrays."""
    key = b"bomb.key"
    value = draw.choice(
        (
            struct.pack("<IIQ", 9, draw.choice((0, 4, 8, 9, 77)), draw.choice(HUGE)),
            struct.pack("<IQ", 8, draw.choice(HUGE)),
            struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * draw.choice((3, 3000)) + struct.pack("<IQ", 4, 0),
            struct.pack("<IIQ", 9, 8, 200_000) + struct.pack("<Q", 0) * 200_000,
        )
    )
    (keys,) = struct.unpack_from("<Q", raw, 16)
    return raw[:16] + struct.pack("<Q", keys + 1) + struct.pack("<Q", len(key)) + key + value + raw[24:]


def safetensors_header(raw: bytes, draw: random.Random) -> bytes:
    """Another length of the header, offsets that overlap or go past the end, a wrong type, or no JSON."""
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    entry = header[draw.choice(names)]
    kind = draw.randrange(6)
    if kind == 0:
        return _with(raw, 0, draw.choice(HUGE))
    if kind == 1:
        entry["data_offsets"] = draw.choice(([0, 1 << 40], [8, 0], [-1, 4], [0, 0]))
    elif kind == 2:
        entry["shape"] = draw.choice(([1 << 40], [-1], [], ["x"], [2**63, 2**63]))
    elif kind == 3:
        entry["dtype"] = draw.choice(("F99", "U8", "F64", None))
    elif kind == 4:
        header.pop(draw.choice(names))
    else:
        entry.clear()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def json_value(raw: bytes, draw: random.Random) -> bytes:
    """One value somewhere in a JSON document replaced, or a key taken out."""
    document = json.loads(raw)
    node = document
    for _ in range(draw.randint(0, 6)):
        children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        inner = [child for child in children if isinstance(child, (dict, list)) and child]
        if not inner:
            break
        node = draw.choice(inner)
    wrong = draw.choice((None, -1, 1e308, "", "x", [], {}, True, [[]], 2**70))
    if isinstance(node, dict) and node:
        key = draw.choice(list(node))
        if draw.random() < 0.3:
            del node[key]
        else:
            node[key] = wrong
    elif isinstance(node, list) and node:
        node[draw.randrange(len(node))] = wrong
    return json.dumps(document).encode()


def lines(raw: bytes, draw: random.Random) -> bytes:
    """JSONL: NUL, bad UTF-8, a very long line, deep nesting, a value of another type, or a line twice."""
    parts = raw.split(b"\n")
    place = draw.randrange(len(parts) - 1)
    kind = draw.randrange(8)
    if kind == 0:
        parts[place] = b"\0" + parts[place]
    elif kind == 1:
        parts[place] = parts[place].replace(b"a", b"\xff\xfe", 1)
    elif kind == 2:
        parts[place] = b'{"subject": "' + b"x" * (10 << 20) + b'"}'
    elif kind == 3:
        parts[place] = b"[" * 100_000
    elif kind == 4:
        parts[place] = draw.choice((b"1", b"null", b"[]", b'"x"', b"NaN", b"{}", b"1" * 5000))
    elif kind == 5:
        parts.append(parts[place])
    elif kind == 6:
        parts[place] = parts[place].replace(b'"split"', b'"spilt"')
    else:
        parts[place] = json_value(parts[place], draw)
    return b"\n".join(parts)


def table_lines(raw: bytes, draw: random.Random) -> bytes:
    """CSV: NUL, bad UTF-8, a very long field, a quote that nothing closes, more or fewer fields, or no header."""
    parts = raw.split(b"\n")
    place = draw.randrange(len(parts) - 1)
    parts[place] = draw.choice(
        (
            b"\0" + parts[place],
            parts[place].replace(b"a", b"\xff\xfe"),
            b'"' + b"x" * (10 << 20) + b'"',
            b'"' + parts[place],
            parts[place] + b",one more" * draw.choice((1, 1000)),
            parts[place].split(b",")[0],
            b"",
        )
    )
    return b"\n".join(parts)


def recipe(raw: bytes, draw: random.Random) -> bytes:
    """TOML: unknown and wrongly typed keys, values out of range, syntax errors, NUL and bad UTF-8."""
    extra = draw.choice(
        (
            b"\n[unlearn]\nstepps = 3\n",
            b"\n[unlearn]\nsteps = 'many'\n",
            b"\n[unlearn]\nsteps = -1\n",
            b"\n[unlearn]\nlearning_rate = nan\n",
            b"\n[gates]\nheadline = 3\n",
            b"\n[nothing]\nx = 1\n",
            b"\n[export]\ntypes = ['Q9_9']\n",
            b"\n[export]\ntypes = []\n",
            b"\n[model]\npath = 'again.gguf'\n",
            b"\n[[facts]]\n",
            b"\n = 1\n",
            b"\0",
            b"\xff\xfe",
            b"\n[a" + b".a" * 5000 + b"]\n",
            b"\nx = " + b"[" * 5000,
        )
    )
    return raw + extra


def _with(raw: bytes, place: int, number: int) -> bytes:
    return raw[:place] + struct.pack("<Q", number) + raw[place + 8 :]


GENERAL: Mapping[str, Mutation] = {
    "truncated": truncated,
    "flipped": flipped,
    "extended": extended,
    "noise": noise,
}
BY_KIND: Mapping[str, Mapping[str, Mutation]] = {
    "gguf": {
        **GENERAL,
        "magic": magic,
        "huge counts": huge_counts,
        "huge number": huge_number,
        "offsets": offsets,
        "metadata bomb": metadata_bomb,
    },
    "safetensors": {**GENERAL, "header": safetensors_header},
    "json": {**GENERAL, "value": json_value},
    "jsonl": {**GENERAL, "line": lines},
    "toml": {**GENERAL, "key": recipe},
    "npz": GENERAL,
    "csv": {**GENERAL, "line": table_lines},
    "parquet": {**GENERAL, "huge number": huge_number},
    "dat": {**GENERAL, "huge number": huge_number},
    "pem": GENERAL,
}
