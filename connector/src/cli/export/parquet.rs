//! Parquet (<https://parquet.apache.org/docs/file-format/>): the key, where the record came from if that is asked for, and a
//! column for each field.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{
    Compression, ConvertedType, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel,
};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type, TypePtr};

use super::file::Out;
use super::{Rows, With};
use crate::codec::columns::{Columns, Kind, Shape, Tree, Values};
use crate::schema::{Decimal, Logical, Unit};
use crate::view::{Value, View};
use crate::{Error, ErrorKind, Result};

/// Rows of a row group: as many as DuckDB, which reads a group a thread, makes itself.
pub(super) const MOST_ROWS: usize = 122_880;
/// Bytes in memory after which a row group ends all the same; once again as many are taken while it is written.
const MOST_BYTES: usize = 64 << 20;

pub(super) struct Table {
    writer: SerializedFileWriter<Out>,
    columns: Columns,
    beside: Vec<Beside>,
    /// Bytes of those beside.
    bytes: usize,
    version: u64,
    row_group: usize,
}

/// A column that is no field of the value.
struct Beside {
    what: What,
    values: Values,
    /// Where it may be absent.
    definitions: Option<Vec<i16>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Key(bool),
    Version,
    Timestamp,
    Topic,
    Partition,
    Offset,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Key(_) => "key",
            What::Version => "version",
            What::Timestamp => "timestamp",
            What::Topic => "topic",
            What::Partition => "partition",
            What::Offset => "offset",
        }
    }

    fn kind(self) -> Kind {
        match self {
            What::Key(true) => Kind::Bytes,
            What::Key(false) | What::Topic => Kind::Text,
            What::Version | What::Offset => Kind::Long,
            What::Timestamp => Kind::Logical(Logical::Timestamp(Unit::Millis)),
            What::Partition => Kind::Int,
        }
    }
}

impl Table {
    pub(super) fn new(out: Out, view: &View, with: With) -> Result<Table> {
        let columns = Columns::new(view.schema()).map_err(|unfit| {
            let what = "the dataset's schema has no form as columns; export it as Avro or JSON lines";
            Error::because(ErrorKind::Rejected, what, unfit)
        })?;
        let mut beside = vec![Beside::new(What::Key(with.binary_keys))];
        if with.origin {
            let origin = [What::Version, What::Timestamp, What::Topic, What::Partition, What::Offset];
            beside.extend(origin.map(Beside::new));
        }
        // A field's name never comes to stand twice: as many underscores as none of them begins with.
        let fields: Vec<&str> = columns.fields.iter().map(|field| field.name.as_str()).collect();
        let taken = |mark: &str| {
            beside.iter().any(|beside| fields.contains(&&*format!("{mark}{}", beside.what.name())))
        };
        let mut mark = "_".to_owned();
        while taken(&mark) {
            mark.push('_');
        }
        let schema = schema(&columns, &beside, &mark).map_err(failed)?;
        let about = view.about();
        let said = [
            ("stillwell.dataset", view.identity().dataset.to_string()),
            ("stillwell.topic_id", view.identity().topic_id.to_string()),
            ("stillwell.version", about.version.to_string()),
            ("stillwell.schema", about.schema.json().to_owned()),
        ];
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(format!("stillwell version {}", env!("CARGO_PKG_VERSION")))
            .set_key_value_metadata(Some(
                said.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect(),
            ))
            .set_sorting_columns(Some(vec![SortingColumn {
                column_idx: 0,
                descending: false,
                nulls_first: false,
            }]))
            .build();
        let writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Table { writer, columns, beside, bytes: 0, version: about.version.0, row_group: with.row_group })
    }

    /// Writes the rows so far as a row group.
    fn flush(&mut self) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for beside in &mut self.beside {
            let mut column = group.next_column()?.ok_or_else(more)?;
            write(&mut column, beside.what.kind(), &mut beside.values, beside.definitions.as_deref(), None)?;
            column.close()?;
            beside.clear();
        }
        for column in &mut self.columns.columns {
            let mut writer = group.next_column()?.ok_or_else(more)?;
            let levels = (Some(column.definitions.as_slice()), Some(column.repetitions.as_slice()));
            write(&mut writer, column.kind, &mut column.values, levels.0, levels.1)?;
            writer.close()?;
        }
        group.close()?;
        self.columns.clear();
        self.bytes = 0;
        Ok(())
    }
}

impl Rows for Table {
    fn push(&mut self, value: &Value<'_>) -> Result<()> {
        let key = || String::from_utf8_lossy(value.key()).into_owned();
        for beside in &mut self.beside {
            let what = beside.what;
            self.bytes += beside.push(value, self.version).ok_or_else(|| {
                let what =
                    format!("the {} of record {:?} is not UTF-8: say --binary-keys", what.name(), key());
                Error::new(ErrorKind::Rejected, what)
            })?;
        }
        self.columns.row(value.bytes()).map_err(|refused| {
            let what = format!("record {:?} cannot be a row; Avro and JSON lines take it as it is", key());
            Error::because(ErrorKind::Rejected, what, refused)
        })?;
        let full = self.columns.rows() >= self.row_group || self.columns.bytes() + self.bytes >= MOST_BYTES;
        if full { self.flush().map_err(failed) } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if self.columns.rows() > 0 {
            self.flush().map_err(failed)?;
        }
        self.writer.finish().map(drop).map_err(failed)
    }
}

impl Beside {
    fn new(what: What) -> Beside {
        let optional = matches!(what, What::Topic | What::Partition);
        Beside { what, values: Values::of(what.kind()), definitions: optional.then(Vec::new) }
    }

    fn clear(&mut self) {
        self.values.clear();
        if let Some(definitions) = &mut self.definitions {
            definitions.clear();
        }
    }

    /// Adds what it says of a record, and says how many bytes that takes; `None` where text is none.
    fn push(&mut self, value: &Value<'_>, version: u64) -> Option<usize> {
        let origin = value.source();
        if let Some(definitions) = &mut self.definitions {
            definitions.push(i16::from(origin.source.is_some()));
        }
        Some(match (self.what, &mut self.values) {
            (What::Key(binary), values) => {
                if !binary {
                    std::str::from_utf8(value.key()).ok()?;
                }
                values.put_bytes(value.key())
            }
            (What::Topic, values) => {
                origin.source.map_or(0, |source| values.put_bytes(source.topic.as_bytes()))
            }
            (what, Values::Long(longs)) => {
                longs.push(match what {
                    What::Version => version as i64,
                    What::Timestamp => origin.timestamp_ms,
                    _ => origin.offset,
                });
                8
            }
            (_, Values::Int(ints)) => {
                ints.extend(origin.source.map(|source| source.partition));
                4
            }
            _ => 0,
        })
    }
}

fn failed(error: ParquetError) -> Error {
    Error::because(ErrorKind::Unavailable, "writing Parquet", error)
}

fn more() -> ParquetError {
    ParquetError::General("there are more columns than the schema has".to_owned())
}

/// The file's schema.
fn schema(columns: &Columns, beside: &[Beside], mark: &str) -> Result<TypePtr, ParquetError> {
    let mut fields = Vec::with_capacity(beside.len() + columns.fields.len());
    for beside in beside {
        let name = format!("{mark}{}", beside.what.name());
        fields.push(primitive(&name, beside.what.kind(), beside.definitions.is_some())?);
    }
    for field in &columns.fields {
        fields.push(node(field, columns)?);
    }
    Ok(Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?))
}

fn repetition(optional: bool) -> Repetition {
    if optional { Repetition::OPTIONAL } else { Repetition::REQUIRED }
}

fn node(tree: &Tree, columns: &Columns) -> Result<TypePtr, ParquetError> {
    let mut shape = &tree.shape;
    while let Shape::Maybe(_, inner) = shape {
        shape = inner;
    }
    let group = |fields, logical| {
        Type::group_type_builder(&tree.name)
            .with_repetition(repetition(tree.optional))
            .with_logical_type(logical)
            .with_fields(fields)
            .build()
            .map(Arc::new)
    };
    let repeated = |name, fields| {
        let built = Type::group_type_builder(name).with_repetition(Repetition::REPEATED).with_fields(fields);
        built.build().map(Arc::new)
    };
    let all = |trees: &[Tree]| trees.iter().map(|tree| node(tree, columns)).collect::<Result<Vec<_>, _>>();
    match shape {
        Shape::Leaf(column) => {
            let kind = columns.columns.get(*column).map_or(Kind::Null, |column| column.kind);
            primitive(&tree.name, kind, tree.optional)
        }
        Shape::Record(fields) | Shape::Choice(_, fields) => group(all(fields)?, None),
        Shape::List(element, _) => {
            let list = repeated("list", vec![node(element, columns)?])?;
            group(vec![list], Some(LogicalType::List))
        }
        Shape::Map(pair) => {
            let pairs = repeated("key_value", all(&pair[..])?)?;
            group(vec![pairs], Some(LogicalType::Map))
        }
        Shape::Maybe(..) => unreachable!("they were stepped into"),
    }
}

fn primitive(name: &str, kind: Kind, optional: bool) -> Result<TypePtr, ParquetError> {
    let unit = |unit| match unit {
        Unit::Millis => TimeUnit::MILLIS,
        Unit::Micros => TimeUnit::MICROS,
        Unit::Nanos => TimeUnit::NANOS,
    };
    let (physical, logical, length) = match kind {
        Kind::Null => (Physical::INT32, Some(LogicalType::Unknown), 0),
        Kind::Boolean => (Physical::BOOLEAN, None, 0),
        Kind::Int => (Physical::INT32, None, 0),
        Kind::Long => (Physical::INT64, None, 0),
        Kind::Float => (Physical::FLOAT, None, 0),
        Kind::Double => (Physical::DOUBLE, None, 0),
        Kind::Bytes => (Physical::BYTE_ARRAY, None, 0),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String), 0),
        Kind::Enum => (Physical::BYTE_ARRAY, Some(LogicalType::Enum), 0),
        Kind::Fixed(size) => (Physical::FIXED_LEN_BYTE_ARRAY, None, size),
        Kind::Decimal(Decimal { precision, scale }, width) => {
            let logical = LogicalType::decimal(scale as i32, precision as i32);
            (Physical::FIXED_LEN_BYTE_ARRAY, Some(logical), width)
        }
        Kind::Logical(logical) => match logical {
            Logical::Date => (Physical::INT32, Some(LogicalType::Date), 0),
            // Avro's times of day are of no time zone.
            Logical::Time(Unit::Millis) => {
                (Physical::INT32, Some(LogicalType::time(false, TimeUnit::MILLIS)), 0)
            }
            Logical::Time(of) => (Physical::INT64, Some(LogicalType::time(false, unit(of))), 0),
            Logical::Timestamp(of) => (Physical::INT64, Some(LogicalType::timestamp(true, unit(of))), 0),
            Logical::LocalTimestamp(of) => {
                (Physical::INT64, Some(LogicalType::timestamp(false, unit(of))), 0)
            }
            Logical::Uuid => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid), 16),
            // The same bytes; Parquet has it as a converted type alone.
            Logical::Duration => (Physical::FIXED_LEN_BYTE_ARRAY, None, 12),
        },
    };
    let mut builder = Type::primitive_type_builder(name, physical)
        .with_repetition(repetition(optional))
        .with_logical_type(logical)
        // Of the others Parquet has none to say.
        .with_length(if physical == Physical::FIXED_LEN_BYTE_ARRAY { length as i32 } else { -1 });
    match kind {
        Kind::Decimal(decimal, _) => {
            builder = builder.with_precision(decimal.precision as i32).with_scale(decimal.scale as i32);
        }
        Kind::Logical(Logical::Duration) => builder = builder.with_converted_type(ConvertedType::INTERVAL),
        _ => {}
    }
    builder.build().map(Arc::new)
}

/// Writes a column's values, which are taken out of it where they are bytes.
fn write(
    column: &mut SerializedColumnWriter<'_>,
    kind: Kind,
    values: &mut Values,
    definitions: Option<&[i16]>,
    repetitions: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let fixed =
        matches!(kind, Kind::Fixed(_) | Kind::Decimal(..) | Kind::Logical(Logical::Uuid | Logical::Duration));
    match (column.untyped(), values) {
        (ColumnWriter::BoolColumnWriter(writer), Values::Boolean(values)) => {
            writer.write_batch(values, definitions, repetitions)?
        }
        (ColumnWriter::Int32ColumnWriter(writer), Values::Int(values)) => {
            writer.write_batch(values, definitions, repetitions)?
        }
        (ColumnWriter::Int64ColumnWriter(writer), Values::Long(values)) => {
            writer.write_batch(values, definitions, repetitions)?
        }
        (ColumnWriter::FloatColumnWriter(writer), Values::Float(values)) => {
            writer.write_batch(values, definitions, repetitions)?
        }
        (ColumnWriter::DoubleColumnWriter(writer), Values::Double(values)) => {
            writer.write_batch(values, definitions, repetitions)?
        }
        (ColumnWriter::ByteArrayColumnWriter(writer), Values::Bytes(bytes, ends)) if !fixed => {
            let values: Vec<ByteArray> = pieces(bytes, ends).map(ByteArray::from).collect();
            writer.write_batch(&values, definitions, repetitions)?
        }
        (ColumnWriter::FixedLenByteArrayColumnWriter(writer), Values::Bytes(bytes, ends)) if fixed => {
            let values: Vec<FixedLenByteArray> =
                pieces(bytes, ends).map(|piece| ByteArray::from(piece).into()).collect();
            writer.write_batch(&values, definitions, repetitions)?
        }
        _ => return Err(ParquetError::General("a column is of another type than its values".to_owned())),
    };
    Ok(())
}

/// Each value's bytes, without a copy.
fn pieces(bytes: &mut Vec<u8>, ends: &[usize]) -> impl Iterator<Item = Bytes> {
    let all = Bytes::from(std::mem::take(bytes));
    let mut begin = 0;
    ends.iter().map(move |end| {
        let piece = all.slice(begin..*end);
        begin = *end;
        piece
    })
}
