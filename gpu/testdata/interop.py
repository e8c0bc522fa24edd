"""Reads telemetry with one library and prints it as JSON.

usage: interop.py rows pandas|pyarrow|duckdb|polars FILE
       interop.py query duckdb SQL
"""
import json
import sys

KEY = "reprise.telemetry"


def rows_pandas(path):
    import pandas
    df = pandas.read_parquet(path, dtype_backend="numpy_nullable")
    columns = [[None if v is pandas.NA else v for v in df[c].tolist()] for c in df.columns]
    return list(df.columns), [list(r) for r in zip(*columns)], None


def rows_pyarrow(path):
    import pyarrow.parquet as pq
    f = pq.ParquetFile(path)
    table = f.read()
    rows = [list(r.values()) for r in table.to_pylist()]
    return table.column_names, rows, f.metadata.metadata[KEY.encode()].decode()


def rows_duckdb(path):
    import duckdb
    db = duckdb.connect()
    rel = db.execute("SELECT * FROM read_parquet(?)", [path])
    names, rows = [d[0] for d in rel.description], rel.fetchall()
    meta = dict(db.execute("SELECT key, value FROM parquet_kv_metadata(?)", [path]).fetchall())
    return names, rows, meta[KEY.encode()].decode()


def rows_polars(path):
    import polars
    df = polars.read_parquet(path)
    return df.columns, df.rows(), polars.read_parquet_metadata(path)[KEY]


def query_duckdb(sql):
    import duckdb
    rel = duckdb.connect().execute(sql)
    return [d[0] for d in rel.description], rel.fetchall(), None


what, library, argument = sys.argv[1:]
columns, rows, info = globals()[f"{what}_{library}"](argument)
json.dump({"columns": columns, "rows": rows, "info": info and json.loads(info)}, sys.stdout)
