//! The subset of Python's pickle protocol 2 that `torch.save` writes for tensors in dictionaries, lists and
//! tuples. Nothing is executed: a stack machine over a closed set of opcodes, and over the few names below,
//! which only mark what a value is. Opcodes are those of CPython's `pickletools`.
//!
//! Values are small and refer to arenas, so a shared value is shared and never copied out.

use std::collections::BTreeMap;

/// Longest pickle that is read, bytes.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most objects (texts, tensors, lists with their items ...), memo entries, and values on the stack.
pub const MAX_OBJECTS: usize = 1_000_000;
/// Deepest nesting of unfinished lists, tuples and dictionaries.
pub const MAX_DEPTH: usize = 64;

type Checked<T> = std::result::Result<T, String>;

/// What a pickle holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(u32),
    /// A tuple.
    Tuple(u32),
    /// A list.
    List(u32),
    /// A dict or OrderedDict.
    Dict(u32),
    /// A tensor.
    Tensor(u32),
    /// A name that was referred to.
    Name(Name),
    /// A tensor's memory.
    Storage(u32),
}

/// The names that may be referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(Element),
}

/// Element type of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// float32
    F32,
    /// float16
    F16,
    /// bfloat16
    Bf16,
    /// float64
    F64,
    /// int64
    I64,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 | Element::I64 => 8,
        }
    }
}

const NAMES: &[(&str, &str, Name)] = &[
    ("collections", "OrderedDict", Name::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Name::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Name::RebuildParameter),
    ("torch", "FloatStorage", Name::Storage(Element::F32)),
    ("torch", "HalfStorage", Name::Storage(Element::F16)),
    ("torch", "BFloat16Storage", Name::Storage(Element::Bf16)),
    ("torch", "DoubleStorage", Name::Storage(Element::F64)),
    ("torch", "LongStorage", Name::Storage(Element::I64)),
];

/// A tensor's memory: an entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Its name: `data/KEY` in the archive. Digits only.
    pub key: String,
    /// Element type.
    pub element: Element,
    /// Elements.
    pub len: u64,
}

/// A contiguous tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Index into [`Pickle::storages`].
    pub storage: usize,
    /// First element.
    pub offset: u64,
    /// Dimensions, at most 8.
    pub shape: Vec<usize>,
    /// Product of the dimensions.
    pub elements: u64,
}

/// A pickle that was read.
#[derive(Clone, Debug)]
pub struct Pickle {
    /// What it holds.
    pub root: Value,
    /// Every storage it refers to.
    pub storages: Vec<Storage>,
    texts: Vec<String>,
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<Tensor>,
}

impl Pickle {
    /// Text of a string.
    #[must_use]
    pub fn text(&self, value: Value) -> Option<&str> {
        if let Value::Text(i) = value { Some(&self.texts[i as usize]) } else { None }
    }

    /// Items of a list or tuple.
    #[must_use]
    pub fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(i) => Some(&self.tuples[i as usize]),
            Value::List(i) => Some(&self.lists[i as usize]),
            _ => None,
        }
    }

    /// The tensor.
    #[must_use]
    pub fn tensor(&self, value: Value) -> Option<&Tensor> {
        if let Value::Tensor(i) = value { Some(&self.tensors[i as usize]) } else { None }
    }

    /// A number; integers become floats.
    #[must_use]
    pub fn number(&self, value: Value) -> Option<f64> {
        match value {
            Value::Int(i) => Some(i as f64),
            Value::Float(f) => Some(f),
            _ => None,
        }
    }

    /// Entries of a dictionary whose keys are texts; `None` when another key is among them or one occurs twice.
    #[must_use]
    pub fn by_text(&self, value: Value) -> Option<BTreeMap<&str, Value>> {
        self.entries(value, |key| self.text(key))
    }

    /// Entries of a dictionary whose keys are integers; `None` when another key is among them or one occurs twice.
    #[must_use]
    pub fn by_int(&self, value: Value) -> Option<BTreeMap<i64, Value>> {
        self.entries(value, |key| if let Value::Int(i) = key { Some(i) } else { None })
    }

    fn entries<K: Ord>(&self, value: Value, key: impl Fn(Value) -> Option<K>) -> Option<BTreeMap<K, Value>> {
        let Value::Dict(i) = value else { return None };
        let mut map = BTreeMap::new();
        for (k, v) in &self.dicts[i as usize] {
            if map.insert(key(*k)?, *v).is_some() {
                return None;
            }
        }
        Some(map)
    }
}

/// Reads a pickle.
///
/// # Errors
/// What is refused, and at which byte.
pub fn parse(bytes: &[u8]) -> Checked<Pickle> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("a pickle of {} bytes, at most {MAX_BYTES} are read", bytes.len()));
    }
    let empty = Pickle {
        root: Value::None,
        storages: Vec::new(),
        texts: Vec::new(),
        tuples: Vec::new(),
        lists: Vec::new(),
        dicts: Vec::new(),
        tensors: Vec::new(),
    };
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        objects: 0,
        out: empty,
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(false) => {}
            Ok(true) => return Ok(machine.out),
            Err(what) => return Err(format!("pickle offset {at}: {what}")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at each MARK.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
    objects: usize,
    out: Pickle,
}

impl Machine<'_> {
    /// Executes one opcode; true at the end.
    fn step(&mut self) -> Checked<bool> {
        let [opcode] = self.take()?;
        match opcode {
            0x80 => match self.take()? {
                [2] => {}
                [other] => return Err(format!("protocol {other}, expected 2")),
            },
            b'.' => return self.stop(),
            b'(' => self.mark()?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' | b'M' | b'J' | 0x8a | b'G' | b'X' => self.literal(opcode)?,
            b')' => self.push_tuple(Vec::new())?,
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items)?;
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let first =
                    self.stack.len().checked_sub(count).filter(|f| *f >= self.floor()).ok_or(SHORT)?;
                let items = self.stack.split_off(first);
                self.push_tuple(items)?;
            }
            b']' | b'}' | b'a' | b'e' | b's' | b'u' => self.container(opcode)?,
            b'q' | b'r' | b'h' | b'j' => self.memo(opcode)?,
            b'c' => self.name()?,
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => return Err(format!("refused opcode 0x{other:02x}")),
        }
        Ok(false)
    }

    fn stop(&mut self) -> Checked<bool> {
        self.out.root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() || self.at != self.bytes.len() {
            return Err("something is left over at the end".into());
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let found = self.bytes[self.at..].first_chunk::<N>().ok_or("the pickle is cut short")?;
        self.at += N;
        Ok(*found)
    }

    fn slice(&mut self, count: usize) -> Checked<&str> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the pickle is cut short")?;
        let text = std::str::from_utf8(&self.bytes[self.at..end]).map_err(|_| "a text is not UTF-8")?;
        self.at = end;
        Ok(text)
    }

    fn mark(&mut self) -> Checked<()> {
        if self.marks.len() == MAX_DEPTH {
            return Err(format!("nested more than {MAX_DEPTH} deep"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// What lies below belongs to an unfinished container.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn push(&mut self, value: Value) -> Checked<()> {
        if self.stack.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} values on the stack"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Checked<Value> {
        if self.stack.len() <= self.floor() {
            return Err(SHORT.into());
        }
        self.stack.pop().ok_or_else(|| SHORT.into())
    }

    fn since_mark(&mut self) -> Checked<Vec<Value>> {
        let mark = self.marks.pop().ok_or(SHORT)?;
        Ok(self.stack.split_off(mark))
    }

    /// Counts more objects.
    fn count(&mut self, more: usize) -> Checked<()> {
        self.objects += more;
        if self.objects > MAX_OBJECTS { Err(format!("more than {MAX_OBJECTS} objects")) } else { Ok(()) }
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Checked<()> {
        self.count(1 + items.len())?;
        self.out.tuples.push(items);
        self.push(Value::Tuple(self.out.tuples.len() as u32 - 1))
    }

    fn literal(&mut self, opcode: u8) -> Checked<()> {
        let value = match opcode {
            b'K' => Value::Int(i64::from(u8::from_le_bytes(self.take()?))),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.take()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.take()?))),
            0x8a => self.long()?,
            b'G' => Value::Float(f64::from_be_bytes(self.take()?)),
            _ => {
                let count = u32::from_le_bytes(self.take()?) as usize;
                let text = self.slice(count)?.to_owned();
                self.count(1)?;
                self.out.texts.push(text);
                Value::Text(self.out.texts.len() as u32 - 1)
            }
        };
        self.push(value)
    }

    /// LONG1: little-endian two's complement of at most 8 bytes here.
    fn long(&mut self) -> Checked<Value> {
        let [count] = self.take()?;
        if count > 8 {
            return Err(format!("an integer of {count} bytes"));
        }
        let mut bytes = [0; 8];
        for byte in bytes.iter_mut().take(usize::from(count)) {
            [*byte] = self.take()?;
        }
        let unused = 64 - 8 * u32::from(count);
        let wide = i64::from_le_bytes(bytes);
        Ok(Value::Int(if count == 0 { 0 } else { wide << unused >> unused }))
    }

    fn container(&mut self, opcode: u8) -> Checked<()> {
        match opcode {
            b']' => {
                self.count(1)?;
                self.out.lists.push(Vec::new());
                self.push(Value::List(self.out.lists.len() as u32 - 1))
            }
            b'}' => self.push_dict(),
            b'a' | b'e' => {
                let items = if opcode == b'a' { vec![self.pop()?] } else { self.since_mark()? };
                self.count(items.len())?;
                let Some(Value::List(list)) = self.top() else {
                    return Err("items for what is no list".into());
                };
                self.out.lists[list as usize].extend(items);
                Ok(())
            }
            _ => {
                let items = if opcode == b's' {
                    let (value, key) = (self.pop()?, self.pop()?);
                    vec![key, value]
                } else {
                    self.since_mark()?
                };
                self.count(items.len())?;
                let Some(Value::Dict(dict)) = self.top() else {
                    return Err("entries for what is no dict".into());
                };
                let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".into()) };
                self.out.dicts[dict as usize].extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
        }
    }

    fn push_dict(&mut self) -> Checked<()> {
        self.count(1)?;
        self.out.dicts.push(Vec::new());
        self.push(Value::Dict(self.out.dicts.len() as u32 - 1))
    }

    fn top(&self) -> Option<Value> {
        if self.stack.len() > self.floor() { self.stack.last().copied() } else { None }
    }

    fn memo(&mut self, opcode: u8) -> Checked<()> {
        let short = |[byte]: [u8; 1]| u32::from(byte);
        let index = match opcode {
            b'q' | b'h' => self.take().map(short)?,
            _ => u32::from_le_bytes(self.take()?),
        };
        if opcode == b'h' || opcode == b'j' {
            let value = *self.memo.get(&index).ok_or_else(|| format!("nothing was remembered as {index}"))?;
            return self.push(value);
        }
        let value = self.top().ok_or(SHORT)?;
        self.memo.insert(index, value);
        if self.memo.len() > MAX_OBJECTS {
            Err(format!("more than {MAX_OBJECTS} memo entries"))
        } else {
            Ok(())
        }
    }

    /// GLOBAL: two lines, module and name.
    fn name(&mut self) -> Checked<()> {
        let mut lines = ["", ""];
        for line in &mut lines {
            let rest = &self.bytes[self.at..];
            let end = rest.iter().take(256).position(|b| *b == b'\n').ok_or("a name is too long")?;
            *line = std::str::from_utf8(&rest[..end]).map_err(|_| "a name is not UTF-8")?;
            self.at += end + 1;
        }
        let [module, name] = lines;
        let known = NAMES.iter().find(|(m, n, _)| (*m, *n) == (module, name));
        let (_, _, value) = known.ok_or_else(|| {
            format!("refused global {}.{}; nothing was executed", module.escape_debug(), name.escape_debug())
        })?;
        self.push(Value::Name(*value))
    }

    /// BINPERSID: `("storage", class, key, location, elements)`.
    fn storage(&mut self) -> Checked<()> {
        let id = self.pop()?;
        let wrong = || "a persistent id that is no tensor storage".to_owned();
        let Some(&[kind, Value::Name(Name::Storage(element)), key, place, Value::Int(len)]) =
            self.out.items(id)
        else {
            return Err(wrong());
        };
        let key = self.out.text(key).filter(|k| k.len() <= 10 && k.bytes().all(|b| b.is_ascii_digit()));
        let (Some("storage"), Some(key), Some(_)) = (self.out.text(kind), key, self.out.text(place)) else {
            return Err(wrong());
        };
        let len = u64::try_from(len).map_err(|_| wrong())?;
        let storage = Storage { key: key.to_owned(), element, len };
        self.count(1)?;
        self.out.storages.push(storage);
        self.push(Value::Storage(self.out.storages.len() as u32 - 1))
    }

    fn reduce(&mut self) -> Checked<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(tuple), Value::Name(name)) = (arguments, function) else {
            return Err("a call of what is no known name".into());
        };
        // At most seven: what follows stride are requires_grad, hooks and metadata, which change no value.
        let given = &self.out.tuples[tuple as usize];
        let arguments: Vec<Value> = if given.len() <= 7 { given.clone() } else { Vec::new() };
        match (name, arguments.as_slice()) {
            (Name::OrderedDict, []) if given.is_empty() => self.push_dict(),
            (Name::RebuildTensor, &[Value::Storage(storage), offset, shape, stride, ..]) => {
                let tensor = self.rebuilt(storage as usize, offset, shape, stride)?;
                self.count(1)?;
                self.out.tensors.push(tensor);
                self.push(Value::Tensor(self.out.tensors.len() as u32 - 1))
            }
            (Name::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool(_), _]) => self.push(tensor),
            _ => Err("a call with arguments of another form".into()),
        }
    }

    fn rebuilt(&self, storage: usize, offset: Value, shape: Value, stride: Value) -> Checked<Tensor> {
        let wrong = || "a tensor whose shape, stride or offset is not well-formed".to_owned();
        let sizes = |v: Value| -> Option<Vec<u64>> {
            let Value::Tuple(i) = v else { return None };
            let size = |v: &Value| if let Value::Int(i) = v { u64::try_from(*i).ok() } else { None };
            self.out.tuples[i as usize].iter().map(size).collect()
        };
        let (Some(shape), Some(stride), Value::Int(offset)) = (sizes(shape), sizes(stride), offset) else {
            return Err(wrong());
        };
        let offset = u64::try_from(offset).map_err(|_| wrong())?;
        if shape.len() != stride.len() || shape.len() > 8 {
            return Err(wrong());
        }
        let mut elements = 1u64;
        for (size, stride) in shape.iter().zip(&stride).rev() {
            if *size != 1 && *stride != elements {
                return Err("a tensor that is not contiguous".into());
            }
            elements = elements.checked_mul(*size).ok_or_else(wrong)?;
        }
        if offset.checked_add(elements).is_none_or(|end| end > self.out.storages[storage].len) {
            return Err("a tensor that reaches beyond its storage".into());
        }
        let shape =
            shape.iter().map(|s| usize::try_from(*s)).collect::<Result<_, _>>().map_err(|_| wrong())?;
        Ok(Tensor { storage, offset, shape, elements })
    }

    /// BUILD: what PyTorch attaches to a module's state (`_metadata`); dropped.
    fn build(&mut self) -> Checked<()> {
        match (self.pop()?, self.top()) {
            (Value::Dict(_), Some(Value::Dict(_))) => Ok(()),
            _ => Err("a state set on what is no dict".into()),
        }
    }
}

const SHORT: &str = "the stack is empty";
