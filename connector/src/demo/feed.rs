//! The feed: where the demo's records come from, and what they must lead to.
//!
//! Owns: the order of records, the one poison record among generated ones, the judgement of what a consumer holds.
//! Does not own: when a record may go out (`flight`), what is read from the dead-letter topic (`letters`).

use std::io::Read;
use std::sync::Arc;

use serde_json::Value as Json;

use super::Error;
use super::comparison::{Differences, compare};
use super::generator::{self, Change, Generator, Kind, Product};
use super::lines::{self, Line, Lines};
use crate::codec::{ExtraFields, Format, KeyRule, text};
use crate::dead::fix::Mended;
use crate::dead::held::Held;
use crate::schema::Schema;
use crate::view::View;

/// What to feed.
pub enum Source {
    /// A catalogue of this many products, and then changes to it.
    Generated {
        /// Which changes.
        seed: u64,
        /// How many products.
        catalogue: u64,
    },
    /// JSON lines.
    Lines {
        /// What messages call them.
        name: String,
        /// Their bytes.
        input: Box<dyn Read + Send>,
        /// The dataset's schema.
        schema: Arc<Schema>,
        /// The fields that make the key.
        key: Vec<String>,
    },
}

/// One record on its way.
#[derive(Debug)]
pub struct Record {
    /// Kafka key.
    pub key: Option<Vec<u8>>,
    /// Value; `None` deletes.
    pub value: Option<Vec<u8>>,
    /// What it is.
    pub what: What,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It changes the dataset so.
    Change(Kind),
    /// It must become a dead letter; its line's number, if it comes from a line.
    Misfit(Option<u64>),
}

/// How many records there were of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// New keys.
    pub inserts: u64,
    /// Other values of known keys.
    pub updates: u64,
    /// Values sent once more.
    pub repeats: u64,
    /// Deletes.
    pub deletes: u64,
    /// Misfits.
    pub misfits: u64,
    /// Key and value bytes of all.
    pub bytes: u64,
}

/// Records, one after another, and the model of what they make.
pub struct Feed {
    kind: Maker,
    schema: Arc<Schema>,
    counts: Counts,
}

#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Maker {
    /// The poison is kept until it has been mended: then it is a product like any other.
    Generated {
        generator: Generator,
        poisoned: bool,
        mended: Option<(String, Product)>,
    },
    Lines {
        lines: Lines,
        key: Vec<String>,
    },
}

impl Feed {
    /// A feed.
    ///
    /// # Errors
    /// [`Error::Config`] where key and schema do not go together.
    pub fn new(source: Source) -> Result<Feed, Error> {
        let (kind, schema) = match source {
            Source::Generated { seed, catalogue } => {
                let schema = Schema::dataset(generator::SCHEMA).expect("a test parses it");
                let generator = Generator::new(seed, catalogue);
                (Maker::Generated { generator, poisoned: false, mended: None }, Arc::new(schema))
            }
            Source::Lines { name, input, schema, key } => {
                let lines = Lines::new(&name, input, &schema, &key)?;
                (Maker::Lines { lines, key }, schema)
            }
        };
        Ok(Feed { kind, schema, counts: Counts::default() })
    }

    /// The dataset's schema.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// How the producer must decode the records.
    pub fn rules(&self) -> (Format, KeyRule) {
        match &self.kind {
            Maker::Generated { .. } => (Format::json(ExtraFields::Ignore), KeyRule::Kafka),
            Maker::Lines { key, .. } => lines::rules(key),
        }
    }

    /// Waits until there may be a record to take. May be given up at any time.
    ///
    /// # Errors
    /// The input's.
    pub async fn ready(&mut self) -> Result<(), Error> {
        match &mut self.kind {
            Maker::Generated { .. } => Ok(()),
            Maker::Lines { lines, .. } => lines.ready().await,
        }
    }

    /// The next record, if one is there. The model then counts it as sent.
    pub fn take(&mut self) -> Option<Record> {
        let record = match &mut self.kind {
            Maker::Generated { generator, poisoned, .. } => {
                if generator.is_loaded() && !*poisoned {
                    *poisoned = true;
                    poison()
                } else {
                    let Change { kind, key, value } = generator.next_change();
                    let value = value.map(String::into_bytes);
                    Record { key: Some(key.into_bytes()), value, what: What::Change(kind) }
                }
            }
            Maker::Lines { lines, .. } => {
                let Line { number, value, key, again } = lines.take()?;
                let what = match (&key, again) {
                    (None, _) => What::Misfit(Some(number)),
                    (Some(_), false) => What::Change(Kind::Insert),
                    (Some(_), true) => What::Change(Kind::Update),
                };
                Record { key, value: Some(value), what }
            }
        };
        self.counts.count(&record);
        Some(record)
    }

    /// What must still be sent when told to end: the poison, where it was not its turn yet.
    pub fn take_last(&mut self) -> Option<Record> {
        let Maker::Generated { poisoned, .. } = &mut self.kind else { return None };
        if std::mem::replace(poisoned, true) {
            return None;
        }
        let record = poison();
        self.counts.count(&record);
        Some(record)
    }

    /// The poison was mended and sent again: from now on its product must be held, as [`mend`] makes it. Key and value as
    /// they must be in the source.
    pub fn mended(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let Maker::Generated { mended, .. } = &mut self.kind else { return None };
        let product = Product::apart(POISON, MENDED_PRICE);
        let json = product.to_json();
        *mended = Some((POISON.to_owned(), product));
        Some((POISON.as_bytes().to_vec(), json.into_bytes()))
    }

    /// Whether it makes its records itself, and knows how the poison is mended.
    pub fn is_generated(&self) -> bool {
        matches!(self.kind, Maker::Generated { .. })
    }

    /// Whether what comes now are changes to what is there.
    pub fn is_loaded(&self) -> bool {
        match &self.kind {
            Maker::Generated { generator, .. } => generator.is_loaded(),
            Maker::Lines { lines, .. } => lines.is_over(),
        }
    }

    /// Whether there is nothing more to take. A generator never ends.
    pub fn is_over(&self) -> bool {
        match &self.kind {
            Maker::Generated { .. } => false,
            Maker::Lines { lines, .. } => lines.is_over(),
        }
    }

    /// What was taken so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Keys that must be held.
    pub fn len(&self) -> u64 {
        match &self.kind {
            Maker::Generated { generator, mended, .. } => generator.len() + u64::from(mended.is_some()),
            Maker::Lines { lines, .. } => lines.held().len() as u64,
        }
    }

    /// Whether no key must be held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares what a consumer holds with what was taken, key by key.
    ///
    /// # Errors
    /// What cannot be read from the view.
    pub fn compare(&self, view: &View) -> Result<Differences, Error> {
        let mut json = String::new();
        let held = view.iter().map(|value| value.map(|value| (value.key(), value)));
        let mut print = move |datum: &[u8]| {
            json.clear();
            text::to_json(view.schema(), datum, &mut json)
                .map(|()| json.clone())
                .map_err(|error| error.to_string())
        };
        let found = match &self.kind {
            Maker::Generated { generator, mended, .. } => {
                // Its key comes after all others.
                let mended = mended.iter().map(|(key, product)| (key.clone(), product));
                compare(held, generator.catalogue().chain(mended), |value, product| {
                    print(value.bytes()).map_or_else(Some, |json| judge_product(&json, product))
                })
            }
            Maker::Lines { lines, key } => {
                let mut codec = lines::codec(&self.schema, key)?;
                compare(held, lines.held(), |value, line| {
                    let same =
                        codec.decode(None, Some(line)).is_ok_and(|made| made.value == Some(value.bytes()));
                    if !same {
                        return Some("other bytes than its last line gives".to_owned());
                    }
                    print(value.bytes()).map_or_else(Some, |json| lines::judge(&json, line))
                })
            }
        };
        found.map_err(Error::Read)
    }
}

impl Counts {
    fn count(&mut self, record: &Record) {
        let bytes = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, |part| part.len() as u64);
        self.bytes += bytes(&record.key) + bytes(&record.value);
        match record.what {
            What::Change(Kind::Insert) => self.inserts += 1,
            What::Change(Kind::Update) => self.updates += 1,
            What::Change(Kind::Repeat) => self.repeats += 1,
            What::Change(Kind::Delete) => self.deletes += 1,
            What::Misfit(_) => self.misfits += 1,
        }
    }

    /// All of them.
    pub fn records(&self) -> u64 {
        self.inserts + self.updates + self.repeats + self.deletes + self.misfits
    }
}

/// The poison's key, behind those of all other products.
const POISON: &str = "P-poison";
/// What its price is in the source.
const WRONG_PRICE: &str = "ask in the shop";
/// And once it is mended.
const MENDED_PRICE: i64 = 1_299;

/// The poison: a product with a price that is no number. It must change nothing, and stop nobody.
fn poison() -> Record {
    let json = Product::apart(POISON, MENDED_PRICE).to_json();
    let mut json: Json = serde_json::from_str(&json).expect("it was JSON a moment ago");
    if let Some(fields) = json.as_object_mut() {
        fields.insert("price_cents".to_owned(), Json::from(WRONG_PRICE));
    }
    let value = Some(json.to_string().into_bytes());
    Record { key: Some(POISON.as_bytes().to_vec()), value, what: What::Misfit(None) }
}

/// Mends the poison, as `dlq replay --fix` would have a program do it.
pub fn mend(held: &Held) -> Mended {
    let value = String::from_utf8_lossy(held.value.as_deref().unwrap_or_default());
    let (wrong, right) = (format!("\"{WRONG_PRICE}\""), MENDED_PRICE.to_string());
    match value.contains(&wrong) {
        true => Ok(Some(value.replace(&wrong, &right).into_bytes().into())),
        false => Err("it is not the poison".to_owned()),
    }
}

fn judge_product(json: &str, product: &Product) -> Option<String> {
    match Product::from_json(json) {
        Ok(held) if held == *product => None,
        Ok(_) => Some(format!("{json} is held, {} was written", product.to_json())),
        Err(error) => Some(format!("{json} is held, and no product: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(catalogue: u64) -> Feed {
        Feed::new(Source::Generated { seed: 1, catalogue }).unwrap()
    }

    #[test]
    fn one_record_is_poison_and_changes_nothing() {
        let mut feed = generated(20);
        let records: Vec<Record> = (0..200).map(|_| feed.take().unwrap()).collect();
        let misfits: Vec<&Record> =
            records.iter().filter(|record| matches!(record.what, What::Misfit(_))).collect();
        assert_eq!(misfits.len(), 1);
        assert!(feed.take_last().is_none());
        let value = misfits[0].value.as_ref().unwrap();
        assert!(Product::from_json(std::str::from_utf8(value).unwrap()).is_err());
        assert_eq!(feed.counts().records(), 200);
    }

    #[test]
    fn a_feed_that_is_ended_early_has_its_poison_still() {
        let mut feed = generated(1_000);
        feed.take();
        assert!(matches!(feed.take_last().map(|record| record.what), Some(What::Misfit(None))));
        assert!(feed.take_last().is_none());
        assert!(generated(1).take_last().is_some(), "even before the first record");
    }

    #[test]
    fn a_product_is_judged_by_all_it_says() {
        let mut feed = generated(5);
        let record = feed.take().unwrap();
        let json = String::from_utf8(record.value.unwrap()).unwrap();
        let product = Product::from_json(&json).unwrap();
        assert_eq!(judge_product(&json, &product), None);
        let other = json.replacen("\"price_cents\":", "\"price_cents\":1", 1);
        assert!(judge_product(&other, &product).unwrap().contains("was written"));
        assert!(judge_product("{}", &product).is_some());
    }
}
