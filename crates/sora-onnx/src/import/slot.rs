//! What names of a file stand for.
//!
//! A graph knows tensors only. Sequences and optional values of a file exist while it is read: a name stands for several
//! values, or for none.

use sora_ir::ValueId;

/// What a name of the file stands for.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// A tensor; also an optional one that is there.
    Value(ValueId),
    /// A sequence of tensors whose number is known.
    List(Vec<ValueId>),
    /// A sequence of tensors of one shape whose number is not known, stacked along a new first axis.
    Stack(ValueId),
    /// An optional value that is not there, or an input that is left out.
    Absent,
    /// It could not be imported, which has been reported.
    Poisoned,
}

impl Slot {
    /// The values behind the name, in order.
    pub(super) fn values(&self) -> &[ValueId] {
        match self {
            Slot::Value(value) | Slot::Stack(value) => std::slice::from_ref(value),
            Slot::List(values) => values,
            Slot::Absent | Slot::Poisoned => &[],
        }
    }

    /// A slot of the same form that takes its values from `values` in turn.
    pub(super) fn with(&self, values: &mut impl Iterator<Item = ValueId>) -> Slot {
        let mut next = |make: fn(ValueId) -> Slot| values.next().map_or(Slot::Poisoned, make);
        match self {
            Slot::Value(_) => next(Slot::Value),
            Slot::Stack(_) => next(Slot::Stack),
            Slot::List(list) => Slot::List(values.take(list.len()).collect()),
            Slot::Absent => Slot::Absent,
            Slot::Poisoned => Slot::Poisoned,
        }
    }

    /// Whether both are the same kind of thing, of as many values.
    pub(super) fn same_form(&self, other: &Slot) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.values().len() == other.values().len()
    }

    /// What it is, for a message.
    pub(super) fn describe(&self) -> String {
        match self {
            Slot::Value(_) => "a tensor".to_owned(),
            Slot::List(list) => format!("a sequence of {}", list.len()),
            Slot::Stack(_) => "a sequence of unknown length".to_owned(),
            Slot::Absent => "absent".to_owned(),
            Slot::Poisoned => "not imported".to_owned(),
        }
    }
}
