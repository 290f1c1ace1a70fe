//! The generator of the tests that run random text: the same in every run. What a test draws from it, it adds itself.

/// Marsaglia's xorshift64; the seed is not 0.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
