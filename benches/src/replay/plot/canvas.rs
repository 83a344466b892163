//! Pixels to draw on, and their way into a PNG. Letters come from a bitmap font that is compiled in: a server has no
//! fonts, and a picture should look the same everywhere.

use std::convert::Infallible;

use embedded_graphics::{
    mono_font::{MonoFont, MonoTextStyle, ascii::FONT_9X18, ascii::FONT_10X20},
    pixelcolor::BinaryColor,
    prelude::{Dimensions, DrawTarget, Drawable, Point, Size},
    primitives::Rectangle,
    text::{Baseline, Text},
};
use plotters_backend::{
    BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    text_anchor::{HPos, VPos},
};

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// Text of this size and more is set in the larger font.
const LARGE: f64 = 24.0;

pub struct Canvas<'a> {
    size: (u32, u32),
    /// Red, green, blue, row by row.
    pixels: &'a mut [u8],
}

impl<'a> Canvas<'a> {
    /// White.
    pub fn blank((width, height): (u32, u32)) -> Vec<u8> {
        vec![0xff; width as usize * height as usize * 3]
    }

    /// # Panics
    /// If `pixels` are not of that size.
    pub fn new(size: (u32, u32), pixels: &'a mut [u8]) -> Self {
        assert_eq!(pixels.len(), size.0 as usize * size.1 as usize * 3, "three bytes a pixel");
        Self { size, pixels }
    }
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        let (width, height) = (self.size.0 as i32, self.size.1 as i32);
        if (0..width).contains(&x) && (0..height).contains(&y) {
            let at = (y as usize * width as usize + x as usize) * 3;
            let (r, g, b) = color.rgb;
            for (pixel, wanted) in self.pixels[at..at + 3].iter_mut().zip([r, g, b]) {
                let mixed = f64::from(*pixel) * (1.0 - color.alpha) + f64::from(wanted) * color.alpha;
                *pixel = mixed.round() as u8;
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        let (width, height) = size_of(text, style);
        let left = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => width / 2,
            HPos::Right => width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => height / 2,
            VPos::Bottom => height,
        };
        let mut glyphs = Glyphs::default();
        let letters = MonoTextStyle::new(font(style), BinaryColor::On);
        let Ok(_) = Text::with_baseline(text, Point::zero(), letters, Baseline::Top).draw(&mut glyphs);
        for point in glyphs.0 {
            let (x, y) = style.transform().transform(point.x - left, point.y - top);
            self.draw_pixel((at.0 + x, at.1 + y), style.color())?;
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let (width, height) = size_of(text, style);
        Ok((width as u32, height as u32))
    }
}

fn font<S: BackendTextStyle>(style: &S) -> &'static MonoFont<'static> {
    if style.size() >= LARGE { &FONT_10X20 } else { &FONT_9X18 }
}

fn size_of<S: BackendTextStyle>(text: &str, style: &S) -> (i32, i32) {
    let letter = font(style).character_size;
    (letter.width as i32 * text.chars().count() as i32, letter.height as i32)
}

/// The points of a text, before it is turned and put in its place.
#[derive(Default)]
struct Glyphs(Vec<Point>);

impl Dimensions for Glyphs {
    fn bounding_box(&self) -> Rectangle {
        Rectangle::new(Point::zero(), Size::new(u32::from(u16::MAX), u32::from(u16::MAX)))
    }
}

impl DrawTarget for Glyphs {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = embedded_graphics::Pixel<BinaryColor>>,
    {
        let on = pixels.into_iter().filter(|pixel| pixel.1 == BinaryColor::On);
        self.0.extend(on.map(|pixel| pixel.0));
        Ok(())
    }
}

/// The file's bytes.
pub fn encode((width, height): (u32, u32), pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}
