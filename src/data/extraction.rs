//! Micro precision, recall and F1 of extracted entities, relations and events, with the definitions of
//! DeepKE / IEPile's `ie2instruction/eval_func.py`. Pure: texts in, counts out.
//!
//! Rows whose source and id agree are the parts of one text (a long schema is asked for in several rows): their
//! answers are joined and compared with the text's label, which every part carries and the first one's counts.
//! An answer that is no JSON object says nothing and is counted as unparsable; inside one that is, what has not
//! the task's shape is passed over. Items are compared exactly, as a multiset (each gold item is found at most
//! once) or as sets, text by text; the counts of all texts are summed.

use serde_json::Value;
use std::collections::BTreeMap;

/// What is extracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Entities: `{type: [entity]}`.
    Ner,
    /// Relations: `{relation: [{"subject", "object"}]}`.
    Re,
    /// Events: `{type: [{"trigger", "arguments": {role: argument or list of them}}]}`.
    Ee,
    /// Event triggers: `{type: [trigger]}`.
    Eet,
    /// Event arguments: `{type: [{role: argument or list of them}]}`, or as [`Task::Ee`] without triggers.
    Eea,
}

impl Task {
    /// All tasks and their names.
    pub const ALL: [(&'static str, Task); 5] =
        [("NER", Task::Ner), ("RE", Task::Re), ("EE", Task::Ee), ("EET", Task::Eet), ("EEA", Task::Eea)];

    /// The task called `name`; upper and lower case are the same.
    #[must_use]
    pub fn named(name: &str) -> Option<Task> {
        Self::ALL.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, task)| task)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, task)| *task == self).map_or("", |(name, _)| name)
    }

    /// What is counted, each by itself: two kinds for events, one for the rest.
    #[must_use]
    pub fn counted(self) -> &'static [&'static str] {
        match self {
            Task::Ner => &["entity"],
            Task::Re => &["relation"],
            Task::Ee | Task::Eea => &["event", "argument"],
            Task::Eet => &["trigger"],
        }
    }
}

/// How the items of one text are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchMode {
    /// As multisets: said twice, counted twice; each gold item is found at most once.
    Normal,
    /// As sets.
    Set,
}

/// An event argument that an answer declares to be absent.
const ABSENT: &str = "NAN";

/// The JSON texts of its parts, so that the number 5 is not the text "5".
type Item = Vec<String>;

/// What a text is said to hold: items for each entry of [`Task::counted`].
#[derive(Clone, Debug, Default, PartialEq)]
struct Found([Vec<Item>; 2]);

impl Found {
    fn add(&mut self, kind: usize, parts: &[&Value]) {
        self.0[kind].push(parts.iter().map(|part| part.to_string()).collect());
    }

    fn join(&mut self, other: Found) {
        let [first, second] = other.0;
        self.0[0].extend(first);
        self.0[1].extend(second);
    }
}

/// What an answer says; `None` when it is no JSON object.
fn answered(task: Task, answer: &str) -> Option<Found> {
    let Ok(Value::Object(answer)) = serde_json::from_str(answer) else { return None };
    let mut found = Found::default();
    for (key, values) in answer {
        let (key, Value::Array(values)) = (Value::String(key), values) else { continue };
        for value in &values {
            match task {
                Task::Ner | Task::Eet if value.is_string() => found.add(0, &[value, &key]),
                Task::Ner | Task::Eet => {}
                Task::Re => relation(&mut found, &key, value),
                Task::Ee | Task::Eea => event(&mut found, task, &key, value),
            }
        }
    }
    Some(found)
}

/// A missing subject or object is the empty text.
fn relation(found: &mut Found, relation: &Value, value: &Value) {
    let empty = Value::String(String::new());
    let part = |name: &str| value.get(name).unwrap_or(&empty);
    let (subject, object) = (part("subject"), part("object"));
    if value.is_object() && subject.is_string() && object.is_string() {
        found.add(0, &[subject, relation, object]);
    }
}

fn event(found: &mut Found, task: Task, kind: &Value, value: &Value) {
    let none = Value::String(String::new());
    let Value::Object(fields) = value else { return };
    let inner = fields.get("arguments").and_then(Value::as_object);
    let (trigger, roles) = match task {
        Task::Ee => (fields.get("trigger").unwrap_or(&none), inner),
        _ => (&none, Some(inner.unwrap_or(fields))),
    };
    if !trigger.is_string() {
        return;
    }
    found.add(0, &[kind, trigger]);
    for (role, argument) in roles.into_iter().flatten() {
        let role = Value::String(role.clone());
        let arguments = argument.as_array().map_or(std::slice::from_ref(argument), Vec::as_slice);
        for argument in arguments.iter().filter(|argument| argument.as_str() != Some(ABSENT)) {
            found.add(1, &[kind, argument, &role]);
        }
    }
}

/// What a label says: a list of objects with the keys that DeepKE's converter writes.
fn labelled(task: Task, label: &Value) -> Result<Found, String> {
    let list = |value: &Value, what: &str| {
        value.as_array().cloned().ok_or_else(|| format!("{what} is not a list of objects"))
    };
    let part = |item: &Value, name: &str| {
        item.get(name).cloned().ok_or_else(|| format!("an item of the label has no `{name}`"))
    };
    let none = Value::String(String::new());
    let mut found = Found::default();
    for item in list(label, "the label")? {
        match task {
            Task::Ner => found.add(0, &[&part(&item, "entity")?, &part(&item, "entity_type")?]),
            Task::Eet => found.add(0, &[&part(&item, "event_trigger")?, &part(&item, "event_type")?]),
            Task::Re => {
                let part = |name: &str| item.get(name).unwrap_or(&none);
                found.add(0, &[part("head"), part("relation"), part("tail")]);
            }
            Task::Ee | Task::Eea => {
                let kind = part(&item, "event_type")?;
                let trigger = if task == Task::Ee { part(&item, "event_trigger")? } else { none.clone() };
                found.add(0, &[&kind, &trigger]);
                for argument in list(&part(&item, "arguments")?, "`arguments` in the label")? {
                    found.add(1, &[&kind, &part(&argument, "argument")?, &part(&argument, "role")?]);
                }
            }
        }
    }
    Ok(found)
}

/// Items found, wanted, and both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Predicted items that are gold.
    pub matched: u64,
    /// Gold items.
    pub gold: u64,
    /// Predicted items.
    pub predicted: u64,
}

impl Count {
    fn add(&mut self, gold: &[Item], predicted: &[Item], mode: MatchMode) {
        let (gold, predicted) = (multiplicities(gold, mode), multiplicities(predicted, mode));
        self.gold += gold.values().sum::<u64>();
        self.predicted += predicted.values().sum::<u64>();
        self.matched +=
            predicted.iter().map(|(item, n)| gold.get(item).map_or(0, |m| *n.min(m))).sum::<u64>();
    }

    /// Percent, to two decimals; 0 when nothing was predicted.
    #[must_use]
    pub fn precision(&self) -> f64 {
        percent(self.matched, self.predicted)
    }

    /// Percent, to two decimals; 0 when there is no gold item.
    #[must_use]
    pub fn recall(&self) -> f64 {
        percent(self.matched, self.gold)
    }

    /// Percent, to two decimals: the harmonic mean of precision and recall as they are shown.
    #[must_use]
    pub fn f1(&self) -> f64 {
        let (p, r) = (self.precision(), self.recall());
        if p + r == 0.0 { 0.0 } else { rounded(2.0 * p * r / (p + r)) }
    }
}

fn multiplicities(items: &[Item], mode: MatchMode) -> BTreeMap<&Item, u64> {
    let mut counts = BTreeMap::new();
    for item in items {
        let count = counts.entry(item).or_insert(0);
        *count = if mode == MatchMode::Set { 1 } else { *count + 1 };
    }
    counts
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { rounded(part as f64 / whole as f64 * 100.0) }
}

/// To two decimals as Python's `round`: the exact binary value is rounded, halves to even.
fn rounded(x: f64) -> f64 {
    format!("{x:.2}").parse().unwrap_or(x)
}

/// The counts of some texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Texts: rows of one source and id are one.
    pub texts: u64,
    /// Rows whose answer is no JSON object.
    pub unparsable: u64,
    /// One for each entry of [`Task::counted`].
    pub counts: Vec<Count>,
}

impl Tally {
    fn add(&mut self, task: Task, mode: MatchMode, text: &Text) {
        self.texts += 1;
        self.unparsable += text.unparsable;
        self.counts.resize(task.counted().len(), Count::default());
        for (count, (gold, predicted)) in
            self.counts.iter_mut().zip(text.gold.0.iter().zip(&text.predicted.0))
        {
            count.add(gold, predicted, mode);
        }
    }
}

/// One text: its label, and what the answers of all its rows say.
#[derive(Clone, Debug)]
struct Text {
    source: String,
    gold: Found,
    predicted: Found,
    unparsable: u64,
}

/// Rows with labels and answers, joined to texts.
#[derive(Clone, Debug)]
pub struct Scorer {
    task: Task,
    texts: BTreeMap<String, Text>,
    /// Rows whose label is not that of the first row of their text.
    pub other_labels: u64,
}

/// The source of rows that name none, as `eval_func.py` has it.
pub const NO_SOURCE: &str = "None";

impl Scorer {
    /// Without rows.
    #[must_use]
    pub fn new(task: Task) -> Self {
        Scorer { task, texts: BTreeMap::new(), other_labels: 0 }
    }

    /// Takes one row.
    ///
    /// # Errors
    /// What is wrong with the label.
    pub fn add(&mut self, source: &str, id: &str, label: &Value, answer: &str) -> Result<(), String> {
        let gold = labelled(self.task, label)?;
        let text = self.texts.entry(format!("{source}{id}")).or_insert_with(|| Text {
            source: source.to_owned(),
            gold: gold.clone(),
            predicted: Found::default(),
            unparsable: 0,
        });
        self.other_labels += u64::from(text.gold != gold);
        match answered(self.task, answer) {
            Some(found) => text.predicted.join(found),
            None => text.unparsable += 1,
        }
        Ok(())
    }

    /// The counts of all texts.
    #[must_use]
    pub fn total(&self, mode: MatchMode) -> Tally {
        let mut total =
            Tally { counts: vec![Count::default(); self.task.counted().len()], ..Tally::default() };
        self.texts.values().for_each(|text| total.add(self.task, mode, text));
        total
    }

    /// The counts of each source's texts.
    #[must_use]
    pub fn by_source(&self, mode: MatchMode) -> BTreeMap<&str, Tally> {
        let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
        for text in self.texts.values() {
            tallies.entry(&text.source).or_default().add(self.task, mode, text);
        }
        tallies
    }
}
