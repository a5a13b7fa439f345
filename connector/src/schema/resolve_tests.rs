use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn placeholder(_seed in any::<u64>()) {}
}
