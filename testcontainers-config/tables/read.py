"""Prints the records of a Parquet or Avro file as JSON lines, and how many row groups a Parquet file has; reads by DuckDB and
fastavro alone."""

import datetime
import decimal
import json
import sys
import uuid


def plain(value):
    if isinstance(value, (bytes, bytearray)):
        return {"hex": bytes(value).hex()}
    if isinstance(value, (decimal.Decimal, uuid.UUID, datetime.timedelta)):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: plain(value) for key, value in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(value) for value in value]
    return value


path = sys.argv[1]
if path.endswith(".parquet"):
    import duckdb

    db = duckdb.connect()
    db.execute("set TimeZone = 'UTC'")
    rows = db.execute("select * from read_parquet(?)", [path])
    names = [column[0] for column in rows.description]
    for row in rows.fetchall():
        print(json.dumps(dict(zip(names, map(plain, row)))))
    groups = db.execute("select count(distinct row_group_id) from parquet_metadata(?)", [path]).fetchone()
    print(json.dumps({"row groups": groups[0]}))
else:
    import fastavro

    with open(path, "rb") as file:
        for record in fastavro.reader(file):
            print(json.dumps(plain(record)))
