//! The kinds of task in a process, and what the early end of each means.

use std::fmt;

use crate::error::{Error, Result};
use crate::producer::Farewell;

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Writes one dataset.
    Producer,
    /// Reads one dataset.
    Consumer,
    /// Serves the datasets to others.
    Front,
    /// Judges health for the log.
    Watch,
}

/// What a task's early end means for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is reported; all others live on.
    OthersLiveOn,
    /// The process stops, and exits with the error's code.
    ProcessEnds,
}

impl Task {
    /// What it means that a task of this kind has ended by a mistake, when `left` of its kind still run.
    ///
    /// A task ends early only by what waiting does not mend (settings that would lose what a topic is for, a bug): what may
    /// pass is tried again within it.
    pub fn meaning(self, left: usize) -> Meaning {
        match self {
            // Of a dataset that is not written here any more the last version stays readable, here too; other datasets
            // have nothing to do with it. But a process that was to write and now writes nothing is better seen to end.
            Task::Producer if left > 0 => Meaning::OthersLiveOn,
            Task::Producer => Meaning::ProcessEnds,
            // The last view stays readable, and says that it is no longer followed by way of health. The same as above
            // where nothing is followed any more.
            Task::Consumer if left > 0 => Meaning::OthersLiveOn,
            Task::Consumer => Meaning::ProcessEnds,
            // Nobody can reach the process, or see how it does.
            Task::Front => Meaning::ProcessEnds,
            // Only the log says less.
            Task::Watch => Meaning::OthersLiveOn,
        }
    }
}

impl Meaning {
    /// For the log.
    pub fn sentence(self) -> &'static str {
        match self {
            Meaning::OthersLiveOn => "ended by a mistake that waiting does not mend; all others live on",
            Meaning::ProcessEnds => "ended by a mistake that waiting does not mend; the process stops",
        }
    }
}

/// Which task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its kind.
    pub task: Task,
    /// The dataset, or what a front is called.
    pub name: String,
}

impl Label {
    pub(super) fn new(task: Task, name: &str) -> Label {
        Label { task, name: name.to_owned() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.task {
            Task::Producer => write!(f, "the producer of {}", self.name),
            Task::Consumer => write!(f, "the consumer of {}", self.name),
            Task::Front => write!(f, "{}", self.name),
            Task::Watch => f.write_str("the watch over health"),
        }
    }
}

/// How a task ends by itself: a producer's farewell, nothing to say, or a mistake.
pub(super) type Finished = Result<Option<Farewell>>;

/// A task has ended before it was told to.
#[derive(Debug)]
pub struct End {
    /// Which.
    pub label: Label,
    /// Why.
    pub error: Error,
    /// What follows.
    pub meaning: Meaning,
}
