//! The generator: a shop's catalogue that comes into being and keeps changing, from a seed.
//!
//! First all products of the catalogue are inserted. Then come changes, in a mix that gives every stage something to
//! do: new prices and stocks, some of them again and again for the same few products (coalesced within a batch),
//! products sent once more as they are (dropped as unchanged), products that are new, and products that go.
//!
//! Owns: the catalogue, which is what both consumers must hold in the end. Does not own: how fast it goes, or Kafka.

use serde::{Deserialize, Serialize};

use crate::clock::Entropy;

/// The dataset's schema.
pub const SCHEMA: &str = include_str!("../../../schemas/product.avsc");

/// Products that get more than their share of changes.
const HOT: u64 = 64;

const MATERIALS: [&str; 8] = ["Brass", "Oak", "Linen", "Steel", "Walnut", "Glass", "Ceramic", "Wool"];
const PURPOSES: [&str; 8] =
    ["reading", "garden", "kitchen", "travel", "desk", "winter", "folding", "hanging"];
const THINGS: [&str; 8] = ["lamp", "chair", "kettle", "blanket", "shelf", "clock", "basket", "mirror"];
const PRAISE: [&str; 6] = [
    "Made by hand in small series.",
    "Comes with spare parts for ten years.",
    "Grüße aus dem Schwarzwald: every piece is numbered.",
    "Ships flat, and needs no tools to set up.",
    "The surface is oiled and not varnished, so that it can be mended.",
    "Said to have been the model for the one in \"The Long Afternoon\".",
];

/// One product, as JSON and as a reader sees it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    id: String,
    name: String,
    category: Category,
    price_cents: i64,
    in_stock: i32,
    // What is left out here has a default in the schema, so that defaults are put to the test as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rating: Option<f64>,
    tags: Vec<String>,
    size: Size,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    discontinued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Category {
    Garden,
    Home,
    Kitchen,
    Office,
    Toys,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    width_mm: i32,
    height_mm: i32,
    depth_mm: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// What a change does to the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A product that was not there.
    Insert,
    /// A product that is different from now on.
    Update,
    /// A product sent once more as it is.
    Repeat,
    /// A product that goes.
    Delete,
}

/// One change: a record of the source topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    /// The key.
    pub key: String,
    /// The product as JSON; `None` deletes.
    pub value: Option<String>,
}

/// Makes changes and keeps the catalogue.
#[derive(Debug)]
pub struct Generator {
    entropy: Entropy,
    /// By number, which is the order of keys too.
    products: Vec<Option<Product>>,
    /// Numbers of the products that are there, in no order.
    there: Vec<usize>,
    /// Products to insert before anything changes.
    catalogue: u64,
}

impl Generator {
    /// The same seed gives the same changes. The first `catalogue` of them are inserts.
    pub fn new(seed: u64, catalogue: u64) -> Generator {
        let entropy = Entropy::seeded(seed);
        Generator { entropy, products: Vec::new(), there: Vec::new(), catalogue: catalogue.max(1) }
    }

    /// Whether all of the catalogue has been inserted, so that what comes are changes to it.
    pub fn is_loaded(&self) -> bool {
        self.products.len() as u64 >= self.catalogue
    }

    /// The next change, which the catalogue then shows already.
    pub fn next_change(&mut self) -> Change {
        let kind = match self.below(100) {
            _ if !self.is_loaded() || self.there.len() < 2 => Kind::Insert,
            0..10 => Kind::Insert,
            10..18 => Kind::Delete,
            18..25 => Kind::Repeat,
            _ => Kind::Update,
        };
        let number = match kind {
            Kind::Insert => {
                let number = self.products.len();
                let product = self.product(number);
                self.products.push(Some(product));
                self.there.push(number);
                number
            }
            Kind::Delete => {
                let place = self.below(self.there.len() as u64) as usize;
                let number = self.there.swap_remove(place);
                if let Some(product) = self.products.get_mut(number) {
                    *product = None;
                }
                number
            }
            Kind::Update | Kind::Repeat => self.pick(),
        };
        if kind == Kind::Update {
            self.alter(number);
        }
        let value = self.products.get(number).and_then(Option::as_ref).map(Product::to_json);
        Change { kind, key: key(number), value }
    }

    /// All products that are there, in the order of their keys.
    pub fn catalogue(&self) -> impl Iterator<Item = (String, &Product)> {
        let numbered = self.products.iter().enumerate();
        numbered.filter_map(|(number, product)| Some((key(number), product.as_ref()?)))
    }

    /// How many products are there.
    pub fn len(&self) -> u64 {
        self.there.len() as u64
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    /// One that is there; every third time one of a few.
    fn pick(&mut self) -> usize {
        let all = self.there.len() as u64;
        let among = if self.below(3) == 0 { all.min(HOT) } else { all };
        let place = self.below(among) as usize;
        self.there.get(place).copied().expect("drawn below the number of those that are there")
    }

    fn product(&mut self, number: usize) -> Product {
        let material = self.one_of(&MATERIALS);
        let (purpose, thing) = (self.one_of(&PURPOSES), self.one_of(&THINGS));
        let categories =
            [Category::Garden, Category::Home, Category::Kitchen, Category::Office, Category::Toys];
        let mut product = Product {
            id: key(number),
            name: format!("{material} {purpose} {thing}"),
            category: self.one_of(&categories),
            price_cents: self.below(50_000) as i64 + 99,
            in_stock: self.below(500) as i32,
            rating: None,
            tags: Vec::new(),
            size: Size {
                width_mm: self.below(2_000) as i32 + 10,
                height_mm: self.below(2_000) as i32 + 10,
                depth_mm: self.below(1_000) as i32 + 10,
            },
            description: None,
            discontinued: false,
        };
        for tag in [material, thing].iter().take(self.below(3) as usize) {
            product.tags.push(tag.to_lowercase());
        }
        if self.below(2) == 0 {
            product.rating = Some(self.below(41) as f64 / 8.0);
        }
        if self.below(3) == 0 {
            let sentences: Vec<&str> = (0..=self.below(4)).map(|_| self.one_of(&PRAISE)).collect();
            product.description = Some(sentences.join(" "));
        }
        product
    }

    fn alter(&mut self, number: usize) {
        let (what, step) = (self.below(10), self.below(200) as i64 + 1);
        let Some(Some(product)) = self.products.get_mut(number) else { return };
        match what {
            0..5 => product.price_cents = (product.price_cents + step * 3 - 301).max(1),
            5..8 => product.in_stock = (i64::from(product.in_stock) + step - 100).max(0) as i32,
            // Eighths are exact in binary, so the same number comes back whatever is done to it in between.
            8 => product.rating = if step > 150 { None } else { Some((step % 41) as f64 / 8.0) },
            _ => product.discontinued = !product.discontinued,
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.entropy.next_u64() % limit.max(1)
    }

    fn one_of<T: Copy>(&self, all: &[T]) -> T {
        let place = self.below(all.len() as u64) as usize;
        *all.get(place).expect("drawn below the length of a list that is not empty")
    }
}

impl Product {
    /// One that no seed makes.
    pub fn apart(id: &str, price_cents: i64) -> Product {
        Product {
            id: id.to_owned(),
            name: "Oiled garden bench".to_owned(),
            category: Category::Garden,
            price_cents,
            in_stock: 1,
            rating: None,
            tags: vec!["bench".to_owned()],
            size: Size { width_mm: 1_200, height_mm: 800, depth_mm: 600 },
            description: None,
            discontinued: false,
        }
    }

    /// As it goes into the source topic.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a product holds nothing that JSON cannot")
    }

    /// As a reader sees it.
    ///
    /// # Errors
    /// What is not as a product must be.
    pub fn from_json(text: &str) -> Result<Product, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn key(number: usize) -> String {
    format!("P-{number:09}")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_changes() {
        let make = |seed| {
            let mut generator = Generator::new(seed, 50);
            (0..500).map(|_| generator.next_change()).collect::<Vec<_>>()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn the_catalogue_is_the_fold_of_its_changes() {
        let mut generator = Generator::new(1, 100);
        let (mut fold, mut kinds) = (BTreeMap::new(), BTreeSet::new());
        for number in 0..2_000 {
            let Change { kind, key, value } = generator.next_change();
            assert!(number >= 100 || kind == Kind::Insert, "the catalogue comes first");
            let before = match &value {
                Some(json) => fold.insert(key.clone(), json.clone()),
                None => fold.remove(&key),
            };
            match kind {
                Kind::Insert => assert_eq!(before, None),
                Kind::Update | Kind::Delete => assert!(before.is_some()),
                Kind::Repeat => assert_eq!(before, value),
            }
            kinds.insert(kind);
        }
        assert_eq!(kinds.len(), 4);
        let catalogue: BTreeMap<_, _> =
            generator.catalogue().map(|(key, product)| (key, product.to_json())).collect();
        assert_eq!(catalogue, fold);
        assert_eq!(generator.len(), fold.len() as u64);
    }

    #[test]
    fn a_product_fits_the_schema_and_comes_back_from_json() {
        let schema = crate::schema::Schema::dataset(SCHEMA).unwrap();
        assert!(!schema.is_raw());
        let mut generator = Generator::new(3, 10);
        for _ in 0..10 {
            generator.next_change();
        }
        for (_, product) in generator.catalogue() {
            assert_eq!(&Product::from_json(&product.to_json()).unwrap(), product);
        }
        let apart = Product::apart("P-x", 7);
        assert_eq!(Product::from_json(&apart.to_json()).unwrap(), apart);
    }
}
