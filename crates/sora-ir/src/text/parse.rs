//! Text → graph. The text may come from a hostile file: every error is returned, nothing panics.
#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;

use sora_tensor::{Buffer, DType, Tensor, element_count};

use crate::{Dim, Graph, Op, TensorType, ValueId};

/// Where and why text is no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// Reads what [`super::print`] writes.
///
/// # Errors
/// [`ParseError`] with the line; a graph that parses also verifies.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    parse_with_table(text, &[])
}

/// Reads what [`super::print_with_table`] writes, given its table.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_table(text: &str, table: &[Tensor]) -> Result<Graph, ParseError> {
    let mut reader = Reader { graph: Graph::default(), ids: HashMap::new(), table };
    let mut last = 0;
    for (i, line) in text.lines().enumerate() {
        last = i + 1;
        if !line.trim().is_empty() {
            reader.line(Cursor { rest: line.trim() }).map_err(|what| ParseError { line: last, what })?;
        }
    }
    crate::verify(&reader.graph).map_err(|error| ParseError { line: last, what: error.to_string() })?;
    Ok(reader.graph)
}

struct Reader<'a> {
    graph: Graph,
    /// Number in the text → value.
    ids: HashMap<usize, ValueId>,
    table: &'a [Tensor],
}

impl Reader<'_> {
    fn line(&mut self, mut cursor: Cursor) -> Result<(), String> {
        if cursor.keyword("graph") {
            self.graph.name = cursor.string()?;
        } else if cursor.keyword("input") {
            let (number, name, ty) = cursor.value()?;
            let id = self.graph.input(&name, ty);
            self.define(number, id)?;
        } else if cursor.keyword("const") {
            let (number, name, ty) = cursor.value()?;
            cursor.expect("=")?;
            let tensor = self.elements(&ty, cursor.rest_of_line())?;
            let id = self.graph.constant(&name, tensor);
            self.define(number, id)?;
        } else if cursor.keyword("output") {
            let name = cursor.string()?;
            let value = cursor.number()?;
            let value = self.lookup(value)?;
            self.graph.output(&name, value);
        } else {
            self.node(&mut cursor)?;
        }
        cursor.end()
    }

    fn node(&mut self, cursor: &mut Cursor) -> Result<(), String> {
        let mut declared = vec![cursor.value()?];
        while cursor.eat(",") {
            declared.push(cursor.value()?);
        }
        cursor.expect("=")?;
        let op = cursor.word()?;
        let name = cursor.string()?;
        cursor.expect("(")?;
        let mut inputs = Vec::new();
        while !cursor.eat(")") {
            if !inputs.is_empty() {
                cursor.expect(",")?;
            }
            let absent = cursor.eat("_");
            inputs.push(if absent { None } else { Some(self.lookup(cursor.number()?)?) });
        }
        let attributes: serde_json::Value = serde_json::from_str(cursor.rest_of_line())
            .map_err(|e| format!("attributes of `{name}`: {e}"))?;
        let tagged = serde_json::Value::Object([(op.to_owned(), attributes)].into_iter().collect());
        let op: Op = serde_json::from_value(tagged).map_err(|e| format!("operator {op}: {e}"))?;
        let outputs = self.graph.add(&name, op, inputs).map_err(|e| e.to_string())?;
        if outputs.len() != declared.len() {
            return Err(format!("node `{name}` has {} outputs, declared {}", outputs.len(), declared.len()));
        }
        for (id, (number, name, ty)) in outputs.into_iter().zip(declared) {
            let inferred = self.graph.ty(id);
            if *inferred != ty {
                return Err(format!("value `{name}` is declared {ty} but is {inferred}"));
            }
            self.graph.rename(id, &name);
            self.define(number, id)?;
        }
        Ok(())
    }

    fn define(&mut self, number: usize, id: ValueId) -> Result<(), String> {
        match self.ids.insert(number, id) {
            None => Ok(()),
            Some(_) => Err(format!("%{number} is defined twice")),
        }
    }

    fn lookup(&self, number: usize) -> Result<ValueId, String> {
        self.ids.get(&number).copied().ok_or_else(|| format!("%{number} is not defined above"))
    }

    fn elements(&self, ty: &TensorType, text: &str) -> Result<Tensor, String> {
        let shape =
            ty.known_shape().ok_or_else(|| format!("a constant cannot have the symbolic shape {ty}"))?;
        if let Some(index) = text.strip_prefix('@') {
            let index: usize = index.parse().map_err(|_| format!("`{text}` is no table entry"))?;
            let tensor = self.table.get(index).ok_or_else(|| format!("the table has no entry {index}"))?;
            return match TensorType::of(tensor) == *ty {
                true => Ok(tensor.clone()),
                false => Err(format!("table entry {index} is {}, declared {ty}", TensorType::of(tensor))),
            };
        }
        let tensor = match text.strip_prefix("0x") {
            Some(hex) => Tensor::new(ty.dtype, &shape, Buffer::copy_of(&from_hex(hex)?)),
            None => {
                let list = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
                let list =
                    list.ok_or_else(|| format!("expected [elements], 0x… or @n, found `{}`", excerpt(text)))?;
                let items = list.split(',').filter(|_| !list.is_empty());
                from_list(ty.dtype, &shape, items)?
            }
        };
        tensor.map_err(|e| e.to_string())
    }
}

fn from_hex(hex: &str) -> Result<Vec<u8>, String> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
    bytes.ok_or_else(|| format!("`{}` is not hexadecimal", excerpt(hex)))
}

fn from_list<'a>(
    dtype: DType,
    shape: &[usize],
    items: impl Iterator<Item = &'a str> + Clone,
) -> Result<Result<Tensor, sora_tensor::TensorError>, String> {
    let bad = |item: &str| format!("`{}` is no {dtype}", excerpt(item));
    let (count, found) = (element_count(shape), items.clone().count());
    if count != Some(found) {
        return Err(format!("shape {shape:?} takes {count:?} elements, found {found}"));
    }
    Ok(match dtype {
        DType::F64 => {
            let values: Result<Vec<f64>, _> = items.map(|v| v.parse().map_err(|_| bad(v))).collect();
            Tensor::from_f64s(dtype, shape, &values?)
        }
        _ if dtype.is_float() => {
            let values: Result<Vec<f64>, _> =
                items.map(|v| v.parse::<f32>().map(f64::from).map_err(|_| bad(v))).collect();
            Tensor::from_f64s(dtype, shape, &values?)
        }
        _ => {
            let (low, high) = dtype.int_range().unwrap_or((0, 1));
            let parse = |v: &str| v.parse().ok().filter(|v| (low..=high).contains(v)).ok_or_else(|| bad(v));
            let values: Result<Vec<i128>, _> = items.map(parse).collect();
            Tensor::from_i128s(dtype, shape, &values?)
        }
    })
}

fn excerpt(text: &str) -> String {
    text.chars().take(24).collect()
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let found = self.rest.split_whitespace().next() == Some(word);
        found && self.eat(word)
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        match self.eat(token) {
            true => Ok(()),
            false => Err(format!("expected `{token}`, found `{}`", excerpt(self.rest))),
        }
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.trim().is_empty() {
            true => Ok(()),
            false => Err(format!("unexpected `{}`", excerpt(self.rest))),
        }
    }

    fn rest_of_line(&mut self) -> &'a str {
        std::mem::take(&mut self.rest).trim()
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let text = self.rest.trim_start();
        let end = text.find(|c| !keep(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        word
    }

    fn word(&mut self) -> Result<&'a str, String> {
        match self.take_while(|c| c.is_ascii_alphanumeric()) {
            "" => Err(format!("expected a word, found `{}`", excerpt(self.rest))),
            word => Ok(word),
        }
    }

    fn number(&mut self) -> Result<usize, String> {
        self.expect("%")?;
        self.word()?.parse().map_err(|_| "expected a number after %".to_owned())
    }

    fn string(&mut self) -> Result<String, String> {
        let text = self.rest.trim_start();
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let value = stream.next().and_then(Result::ok);
        let value = value.ok_or_else(|| format!("expected a quoted name, found `{}`", excerpt(text)))?;
        self.rest = text.get(stream.byte_offset()..).unwrap_or_default();
        Ok(value)
    }

    fn value(&mut self) -> Result<(usize, String, TensorType), String> {
        let number = self.number()?;
        let name = self.string()?;
        let dtype: DType = self.word()?.parse().map_err(|e: sora_tensor::ParseDTypeError| e.to_string())?;
        self.expect("[")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            if !shape.is_empty() {
                self.expect(",")?;
            }
            shape.push(self.dim()?);
        }
        Ok((number, name, TensorType { dtype, shape }))
    }

    /// Everything up to the next comma or bracket outside quotes.
    fn dim(&mut self) -> Result<Dim, String> {
        let text = self.rest.trim_start();
        let mut quoted = false;
        let end = text.find(|c| {
            quoted ^= c == '\'';
            !quoted && (c == ',' || c == ']')
        });
        let (dim, rest) = text.split_at(end.ok_or("a shape does not end")?);
        self.rest = rest;
        Dim::parse(dim).ok_or_else(|| format!("`{}` is no dimension", excerpt(dim)))
    }
}
