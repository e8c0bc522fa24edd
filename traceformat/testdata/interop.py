"""Reads a trace with one library and prints it as JSON, without rounding.

usage: interop.py pandas|pyarrow|duckdb|polars FILE

Integers become decimal strings, since JSON numbers are often read as floats;
block ids are printed unsigned, as FORMAT.md says to read them.
"""
import json
import sys

BLOCKS = {"prefix_blocks", "output_blocks"}


def plain(column, v):
    if hasattr(v, "tolist"):  # numpy and its scalars
        v = v.tolist()
    if isinstance(v, (list, tuple)):
        return [plain(column, x) for x in v]
    if v is None or type(v).__name__ == "NAType":
        return None
    if isinstance(v, bool) or isinstance(v, str):
        return v
    if isinstance(v, int):
        return str(v % 2**64 if column in BLOCKS else v)
    if isinstance(v, float):
        if v != v:
            raise SystemExit(f"{column}: a null became NaN")
        return {"float": v}
    raise SystemExit(f"{column}: unexpected {type(v)}")


def read_pandas(path):
    import pandas
    df = pandas.read_parquet(path, dtype_backend="numpy_nullable")
    return {c: list(df[c]) for c in df.columns}, None


def read_pyarrow(path):
    import pyarrow.parquet as pq
    f = pq.ParquetFile(path)
    for i in range(len(f.schema_arrow)):
        field = f.schema_arrow.field(i)
        if field.name in BLOCKS and str(field.type) not in ("list<element: int64>", "list<element: int64 not null>"):
            raise SystemExit(f"{field.name} is {field.type}")
    meta = {k.decode(): v.decode() for k, v in f.metadata.metadata.items()}
    return f.read().to_pydict(), meta


def read_duckdb(path):
    import duckdb
    db = duckdb.connect()
    rel = db.execute("SELECT * FROM read_parquet(?)", [path])
    names = [d[0] for d in rel.description]
    rows = rel.fetchall()
    meta = db.execute("SELECT key, value FROM parquet_kv_metadata(?)", [path]).fetchall()
    return {n: [r[i] for r in rows] for i, n in enumerate(names)}, {k.decode(): v.decode() for k, v in meta}


def read_polars(path):
    import polars
    df = polars.read_parquet(path)
    meta = polars.read_parquet_metadata(path)
    return df.to_dict(as_series=False), meta


library, path = sys.argv[1:]
columns, meta = globals()["read_" + library](path)
version = __import__(library).__version__
json.dump(
    {
        "version": version,
        "order": list(columns),
        "columns": {c: [plain(c, v) for v in vs] for c, vs in columns.items()},
        "meta": meta,
    },
    sys.stdout,
)
