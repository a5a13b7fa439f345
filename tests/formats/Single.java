// Avro's own decoder of single-object encoding, for tests/formats/reference.rs: finds the schema of each file by its fingerprint,
// reads it, and writes it again.
//
// arguments: schemas (.avsc) and files
// out, a line for each file:  the schema's name, a blank, and what was written, in hexadecimal

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.util.HexFormat;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.avro.message.SchemaStore;

public class Single {
  public static void main(String[] args) throws Exception {
    SchemaStore.Cache store = new SchemaStore.Cache();
    for (String arg : args) {
      if (arg.endsWith(".avsc")) store.addSchema(new Schema.Parser().parse(new File(arg)));
    }
    GenericData data = new GenericData();
    for (String arg : args) {
      if (arg.endsWith(".avsc")) continue;
      byte[] bytes = Files.readAllBytes(new File(arg).toPath());
      Schema schema = store.findByFingerprint(ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).getLong(2));
      Object datum = new BinaryMessageDecoder<Object>(data, schema, store).decode(bytes);
      ByteBuffer out = new BinaryMessageEncoder<Object>(data, schema).encode(datum);
      byte[] again = new byte[out.remaining()];
      out.get(again);
      System.out.println(schema.getFullName() + " " + HexFormat.of().formatHex(again));
    }
  }
}
