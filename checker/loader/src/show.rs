//! What `{:?}` shows: a few facts. Derived forms would have the tables of the image, by the kilobyte in every `unwrap`, and host addresses,
//! which handlers must not learn and logs need not keep.

use crate::image::Image;
use crate::imports::CallContext;
use crate::report::backtrace::Trace;
use crate::window::Window;
use std::fmt::{Debug, Formatter, Result};

impl Debug for Image {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("Image");
        shown.field("name", &self.name()).field("mode", &self.mode()).field("text_bytes", &self.text().len());
        shown.field("entries", &self.entry_names().count()).finish_non_exhaustive()
    }
}

impl Debug for Window {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("Window");
        shown.field("image", self.image()).field("fast", &self.is_fast());
        shown.field("time_limit", &self.time_limit()).field("fuel", &self.fuel()).finish_non_exhaustive()
    }
}

impl Debug for CallContext<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("CallContext").field("image", self.image()).field("fuel_left", &self.fuel_left()).finish_non_exhaustive()
    }
}

impl Debug for Trace {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Trace").field("image", &self.image).finish_non_exhaustive()
    }
}
