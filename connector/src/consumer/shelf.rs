//! Views that several ask for, each opened once.
//!
//! Owns: that of a version one view is there, however many wait for it or have it. Does not own: how it is opened, and how long
//! it is kept: for as long as somebody has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::record::TopicId;
use crate::version::Version;
use crate::view::{Shadow, View};

/// Clones share.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Places>>);

type Places = HashMap<(TopicId, Version), Arc<Place>>;

/// Held while its view is opened.
type Place = tokio::sync::Mutex<Shadow>;

impl Shelf {
    /// The view of a version: the one that somebody has, or else what `open` gives. Who asks for another version meanwhile
    /// does not wait; who does not wait any more leaves it to the next.
    ///
    /// # Errors
    /// Those of `open`.
    pub async fn get<E>(
        &self,
        topic_id: TopicId,
        version: Version,
        open: impl Future<Output = Result<View, E>>,
    ) -> Result<View, E> {
        let place = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Who has a place under way has a clone of it.
            places.retain(|_, place| {
                Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|shadow| shadow.is_there())
            });
            places.entry((topic_id, version)).or_default().clone()
        };
        let mut shadow = place.lock().await;
        if let Some(view) = shadow.view() {
            return Ok(view);
        }
        let view = open.await?;
        *shadow = view.shadow();
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::future::{join_all, pending};

    use super::*;
    use crate::schema::Schema;
    use crate::version::Shard;
    use crate::view::Identity;

    const TOPIC: TopicId = TopicId([7; 16]);

    fn view() -> View {
        let identity = Identity { dataset: "products".into(), topic_id: TOPIC, shard: Shard(0), shards: 1 };
        View::empty(identity, Arc::new(Schema::raw()))
    }

    #[tokio::test]
    async fn many_who_ask_for_a_version_have_one_view_of_it() {
        let (shelf, opened) = (Shelf::default(), AtomicU64::new(0));
        let get = |version| {
            let opened = &opened;
            shelf.get(TOPIC, Version(version), async move {
                opened.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(view())
            })
        };
        let views = join_all((0..256).map(|_| get(7))).await;
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        get(8).await.unwrap();
        get(7).await.unwrap();
        assert_eq!(opened.load(Ordering::Relaxed), 2, "one for each version, while somebody has it");
        drop(views);
        get(7).await.unwrap();
        assert_eq!(opened.load(Ordering::Relaxed), 3);
        assert!(shelf.0.lock().unwrap().len() <= 2, "what nobody has leaves no place behind");
    }

    #[tokio::test]
    async fn who_waits_for_one_that_hangs_holds_nobody_up() {
        let shelf = Shelf::default();
        let mut hangs = Box::pin(shelf.get(TOPIC, Version(7), pending::<Result<View, Infallible>>()));
        assert!(futures::poll!(&mut hangs).is_pending());
        let good = |version| shelf.get(TOPIC, Version(version), async { Ok::<_, Infallible>(view()) });
        good(8).await.unwrap();
        let mut waits = Box::pin(good(7));
        assert!(futures::poll!(&mut waits).is_pending());
        drop(hangs);
        waits.await.unwrap();
    }
}
