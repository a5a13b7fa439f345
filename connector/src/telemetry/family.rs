//! A metric's family: one name, and a child for each combination of labels.
//!
//! Why not prometheus' own `MetricVec`: it finds a child by a hash over its label values *without a separator*
//! (`MetricVecCore::hash_label_values`, 0.14), so that partition 11 of `orders` and partition 1 of `orders1` would
//! share one gauge. Here children are found by the values themselves. Look a child up once and keep it: finding it
//! takes a lock.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc, Metric};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts};

/// Buckets for durations: 0.25 ms (an fsync on a good disk) to 5 minutes (a large snapshot to a slow store).
const SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// Buckets for counts: 1 to 1,000,000.
const COUNTS: &[f64] = &[
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
    300.0,
    1_000.0,
    3_000.0,
    10_000.0,
    30_000.0,
    100_000.0,
    300_000.0,
    1_000_000.0,
];

/// A single time series that a family can make.
pub trait Instrument: Metric + fmt::Debug + 'static {
    /// How Prometheus types it.
    const TYPE: MetricType;
    /// A new one, at zero.
    fn make(name: &str, help: &str, labels: HashMap<String, String>) -> Self;
}

impl Instrument for IntCounter {
    const TYPE: MetricType = MetricType::COUNTER;
    fn make(name: &str, help: &str, labels: HashMap<String, String>) -> Self {
        IntCounter::with_opts(Opts::new(name, help).const_labels(labels)).expect(VALID)
    }
}

impl Instrument for IntGauge {
    const TYPE: MetricType = MetricType::GAUGE;
    fn make(name: &str, help: &str, labels: HashMap<String, String>) -> Self {
        IntGauge::with_opts(Opts::new(name, help).const_labels(labels)).expect(VALID)
    }
}

impl Instrument for Gauge {
    const TYPE: MetricType = MetricType::GAUGE;
    fn make(name: &str, help: &str, labels: HashMap<String, String>) -> Self {
        Gauge::with_opts(Opts::new(name, help).const_labels(labels)).expect(VALID)
    }
}

impl Instrument for Histogram {
    const TYPE: MetricType = MetricType::HISTOGRAM;
    fn make(name: &str, help: &str, labels: HashMap<String, String>) -> Self {
        let buckets = if name.ends_with("_seconds") { SECONDS } else { COUNTS };
        let opts = HistogramOpts::new(name, help).const_labels(labels).buckets(buckets.to_vec());
        Histogram::with_opts(opts).expect(VALID)
    }
}

pub(super) const VALID: &str = "names and labels come from names.rs, whose test makes every metric";

/// One metric name with its children.
pub struct Family<I> {
    name: String,
    help: &'static str,
    labels: Vec<&'static str>,
    desc: Desc,
    /// By label values, in the order of `labels`. Held only to find or add a child, and while collecting.
    children: Mutex<BTreeMap<Vec<String>, I>>,
}

impl<I: Instrument> Family<I> {
    fn new(name: &str, help: &'static str, labels: Vec<&'static str>) -> Arc<Family<I>> {
        let name = format!("stillwell_{name}");
        let variable = labels.iter().map(|label| (*label).to_owned()).collect();
        let help = help.trim();
        let desc = Desc::new(name.clone(), help.to_owned(), variable, HashMap::new()).expect(VALID);
        Arc::new(Family { name, help, labels, desc, children: Mutex::default() })
    }

    pub(super) fn child(&self, values: &[&str]) -> I {
        assert_eq!(values.len(), self.labels.len(), "{} has the labels {:?}", self.name, self.labels);
        let key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        // A panic while it is held leaves the map whole: it only ever gains children.
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children
            .entry(key)
            .or_insert_with(|| {
                let labels = self.labels.iter().zip(values);
                let labels =
                    labels.map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
                I::make(&self.name, self.help, labels)
            })
            .clone()
    }

    fn children_of(&self, owner: &[String]) -> Vec<I> {
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let own = children.iter().filter(|(key, _)| key.starts_with(owner));
        own.map(|(_, child)| child.clone()).collect()
    }

    fn forget(&self, values: &[&str]) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|key, _| key.iter().ne(values.iter()));
    }
}

/// A family as a registry wants it.
struct Shown<I>(Arc<Family<I>>);

impl<I: Instrument> Collector for Shown<I> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let children = self.0.children.lock().unwrap_or_else(PoisonError::into_inner);
        if children.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(self.0.name.clone());
        family.set_help(self.0.help.to_owned());
        family.set_field_type(I::TYPE);
        family.set_metric(children.values().map(Metric::metric).collect());
        vec![family]
    }
}

/// A metric with labels beyond its owner's: `metrics.errors_total.with(&["fetch"])`.
pub struct By<I> {
    family: Arc<Family<I>>,
    owner: Vec<String>,
}

impl<I: Instrument> By<I> {
    /// The time series with these label values, in the order in which `names.rs` lists the labels.
    ///
    /// # Panics
    /// If their number is not that of the labels.
    pub fn with(&self, values: &[&str]) -> I {
        self.family.child(&self.whole(values))
    }

    /// Stops showing the time series with these label values, for instance of a partition given away.
    pub fn forget(&self, values: &[&str]) {
        self.family.forget(&self.whole(values));
    }

    /// All time series of this owner, for a sum over them.
    pub fn all(&self) -> Vec<I> {
        self.family.children_of(&self.owner)
    }

    fn whole<'a>(&'a self, values: &[&'a str]) -> Vec<&'a str> {
        self.owner.iter().map(String::as_str).chain(values.iter().copied()).collect()
    }
}

impl<I> fmt::Debug for By<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "By({})", self.family.name)
    }
}

/// What stands as a field in a metrics struct: a single time series, or one with more labels.
pub(super) trait Field: Sized {
    type Of: Instrument;
    fn of(family: &Arc<Family<Self::Of>>, owner: &[&str]) -> Self;
}

impl<I: Instrument> Field for I {
    type Of = I;
    fn of(family: &Arc<Family<I>>, owner: &[&str]) -> Self {
        family.child(owner)
    }
}

impl<I: Instrument> Field for By<I> {
    type Of = I;
    fn of(family: &Arc<Family<I>>, owner: &[&str]) -> Self {
        By { family: family.clone(), owner: owner.iter().map(|value| (*value).to_owned()).collect() }
    }
}

/// The families made so far, by name. `dead_letters_total` stands on both sides and must be one family.
#[derive(Default)]
pub(super) struct Catalogue {
    families: BTreeMap<&'static str, Box<dyn Any>>,
    /// What a registry shows.
    pub(super) collectors: Vec<Box<dyn Collector>>,
}

impl Catalogue {
    pub(super) fn family<I: Instrument>(
        &mut self,
        name: &'static str,
        help: &'static str,
        owner: &[&'static str],
        more: &[&'static str],
    ) -> Arc<Family<I>> {
        let labels = [owner, more].concat();
        if let Some(family) =
            self.families.get(name).and_then(|family| family.downcast_ref::<Arc<Family<I>>>())
        {
            assert_eq!(family.labels, labels, "{name} has one set of labels");
            return family.clone();
        }
        let family = Family::new(name, help, labels);
        self.collectors.push(Box::new(Shown(family.clone())));
        self.families.insert(name, Box::new(family.clone()));
        family
    }
}

/// The metrics of one struct, as families.
pub(super) trait Families: Sized {
    /// What one owner holds.
    type Owner;
    /// All of them, entered in the catalogue.
    fn new(catalogue: &mut Catalogue) -> Self;
    /// One owner's time series.
    fn owner(&self, labels: &[&str]) -> Self::Owner;
}

/// Makes, from a list of fields, the struct that a stage holds and the families behind it.
macro_rules! families {
    (
        $(#[doc = $about:literal])+
        pub struct $owner:ident[$($base:literal),+] {
            $( #[doc = $help:literal] $field:ident: $kind:ty $([$($label:literal),+])?, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug)]
        pub struct $owner {
            $( #[doc = $help] pub $field: $kind, )+
        }

        const _: () = {
            use std::sync::Arc;
            use $crate::telemetry::family::{Catalogue, Families, Family, Field};

            const OWNER: [&str; [$($base),+].len()] = [$($base),+];

            pub struct All {
                $( $field: Arc<Family<<$kind as Field>::Of>>, )+
            }

            impl $crate::telemetry::family::Owned for $owner {
                type Families = All;
            }

            impl Families for All {
                type Owner = $owner;

                fn new(catalogue: &mut Catalogue) -> Self {
                    All { $(
                        $field: catalogue.family(
                            stringify!($field), $help, &OWNER, &[$($($label),+)?],
                        ),
                    )+ }
                }

                fn owner(&self, labels: &[&str]) -> $owner {
                    $owner { $( $field: Field::of(&self.$field, labels), )+ }
                }
            }

            impl $owner {
                /// Metrics that no registry shows: for tests, and for what runs beside the running system.
                pub fn detached() -> Arc<$owner> {
                    let labels = OWNER.map(|_| "detached");
                    Arc::new(All::new(&mut Catalogue::default()).owner(&labels))
                }
            }
        };
    };
}
pub(super) use families;

/// Leads from the struct to its families.
pub(super) trait Owned {
    type Families: Families<Owner = Self>;
}
